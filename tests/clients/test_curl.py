"""curl, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Curl = Callable[..., tuple[dict[str, str], bytes]]
ASK = {
    "messages": [{"role": "user", "content": "Write a short story about the sea."}],
    "max_tokens": 8,
    "temperature": 0,
}
VERSIONS = {"--http1.1": "1.1", "--http2": "2"}


@pytest.fixture
def curl(kit: Any, route: Any) -> Curl:
    """Ask with curl; returns what `--write-out` knows, and the body."""
    program = kit.need("curl")[0]
    stack = route.stack
    way = ["--cacert", str(stack.ca)] if route.name == "nginx" else ["--unix-socket", str(stack.core_socket)]
    report = '{"status": "%{http_code}", "version": "%{http_version}", "type": "%{content_type}"}'

    def run(path: str, *arguments: str, fields: dict[str, Any] | None = None) -> tuple[dict[str, str], bytes]:
        body = ["--json", json.dumps(fields)] if fields else []
        headers = ["-H", f"Authorization: Bearer {stack.key}"]
        command = [program, "-sSN", "--max-time", "60", *way, *headers, *body, *arguments]
        done = subprocess.run([*command, "-w", f"%{{stderr}}{report}", route.origin + path], capture_output=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stderr), done.stdout

    return run


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, route: Any, kit: Any) -> str:
    """A version of HTTP; the core itself speaks 1.1 alone, which is all that nginx asks of it."""
    if request.param == "--http2":
        features = subprocess.run([kit.need("curl")[0], "--version"], capture_output=True, text=True).stdout
        if "HTTP2" not in features.split():
            pytest.fail("this test needs a curl that speaks HTTP/2")
        if route.name == "core":
            return "--http1.1"
    return str(request.param)


def test_curl_gets_a_whole_answer(curl: Curl, version: str, stack: Any) -> None:
    said, body = curl("/v1/chat/completions", version, fields={**ASK, "model": stack.model})
    assert (said["status"], said["version"], said["type"]) == ("200", VERSIONS[version], "application/json")
    assert json.loads(body)["choices"][0]["message"]["content"].strip()


def test_curl_gets_a_stream(curl: Curl, version: str, stack: Any) -> None:
    said, body = curl("/v1/chat/completions", version, fields={**ASK, "model": stack.model, "stream": True})
    assert (said["status"], said["version"]) == ("200", VERSIONS[version])
    assert said["type"].startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b"data: ") > 5


def test_curl_gets_errors_in_the_envelope(curl: Curl, version: str) -> None:
    said, body = curl("/v1/chat/completions", version, fields={**ASK, "model": "gpt-99"})
    assert (said["status"], said["type"]) == ("404", "application/json")
    assert json.loads(body)["error"]["code"] == "model_not_found"


def test_curl_is_told_that_its_upload_is_too_large(curl: Curl, version: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    said, body = curl("/v1/chat/completions", version, "--data-binary", f"@{large}")
    assert (said["status"], said["type"]) == ("413", "application/json")
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_a_trusting_client_needs_nothing_but_the_authority(front: Any, kit: Any) -> None:
    command = [kit.need("curl")[0], "-sS", "--cacert", str(front.stack.ca), front.stack.origin + "/health"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"status": "ok"})


def test_without_the_authority_the_certificate_is_refused(front: Any, kit: Any) -> None:
    done = subprocess.run([kit.need("curl")[0], "-sS", front.stack.origin + "/health"], capture_output=True, text=True)
    assert done.returncode == 60
