"""`headrace up`: what it prints, how soon it answers, and that nothing outlives it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.alone

ASK = {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0, "max_tokens": 8, "stream": True}

NGINX = """
[plugins.nginx]
port = {port}
workers = 2
"""
REAL = """
[server]
listen = "127.0.0.1:{core_port}"
shutdown_timeout = 5
[models]
"smollm2-135m" = {{ targets = [{{ provider = "embedded" }}] }}
[plugins.logs]
path = "log/requests.log"
[plugins.keys]
development_key = true
[plugins.embedded]
model = "{model}"
name = "smollm2-135m"
threads = 1
context = 2048
"""
SMALL = """
[server]
listen = "127.0.0.1:{core_port}"
[models]
test = {{ targets = [{{ provider = "openai", base_url = "{backend}" }}] }}
[plugins.keys]
development_key = true
[plugins.openai]
"""


@pytest.fixture
def folder(kit: Any) -> Iterator[Path]:
    with kit.short_folder() as folder:
        yield folder


@pytest.fixture
def real_config(kit: Any, folder: Path, model_file: Path) -> Path:
    """Engine, core and nginx."""
    kit.need("nginx")
    path = folder / "real.toml"
    path.write_text((REAL + NGINX).format(core_port=kit.free_port(), port=kit.free_port(), model=model_file))
    return path


@pytest.fixture
def small_config(kit: Any, folder: Path, stack: Any) -> Callable[..., Path]:
    """The core in front of the fake backend; what is given is added to it."""

    def write(more: str = "", core_port: int | None = None) -> Path:
        path = folder / "small.toml"
        path.write_text(SMALL.format(core_port=core_port or kit.free_port(), backend=stack.fake.url) + more)
        return path

    return write


@contextmanager
def streaming(ready: dict[str, str], ca: Path, **fields: Any) -> Iterator[Iterator[str]]:
    """Ask for a stream as a client would; gives its lines that are not empty."""
    with (
        httpx.Client(verify=ssl.create_default_context(cafile=ca), trust_env=False, timeout=60) as client,
        client.stream(
            "POST",
            ready["url"] + "/chat/completions",
            json={**ASK, "model": ready["model"], **fields},
            headers={"Authorization": f"Bearer {ready['key']}"},
        ) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield (line for line in answer.iter_lines() if line)


def first_token(ready: dict[str, str], ca: Path) -> str:
    """The first piece of text of a streamed answer."""
    with streaming(ready, ca) as lines:
        deltas = (json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {"))
        return next(str(delta["content"]) for delta in deltas if delta.get("content"))


def test_one_line_on_stdout_says_where_and_how_to_ask(front: Any) -> None:
    lines = front.stack.launched.stdout
    assert len(lines) == 1
    expected = rf"READY url=https://localhost:{front.stack.port}/v1 key=hr-[\w-]+ model=smollm2-135m"
    assert re.fullmatch(expected, lines[0])


def test_progress_goes_to_stderr(stack: Any) -> None:
    assert re.search(r"^headrace: ready after \d+\.\d s$", stack.launched.stderr, re.MULTILINE)


def test_the_curl_line_works_when_it_is_pasted(front: Any, kit: Any) -> None:
    kit.need("curl")
    printed = [line for line in front.stack.launched.stderr.splitlines() if line.startswith("  curl ")]
    assert len(printed) == 1
    pasted = subprocess.Popen(["bash", "-c", printed[0]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with pasted:
        assert pasted.stdout is not None
        said = [line for line in (pasted.stdout.readline() for _ in range(20)) if line.startswith("data: {")]
        pasted.terminate()  # the model would go on for a while
    assert any(json.loads(line[6:])["choices"][0]["delta"].get("content") for line in said), said


def test_the_playground_is_mentioned(stack: Any) -> None:
    assert f"{stack.origin}/playground" in stack.launched.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_process_it_started(
    kit: Any, launch: Callable[..., Any], folder: Path, real_config: Path, number: signal.Signals
) -> None:
    with launch(folder, "--config", str(real_config), "up") as launched:
        launched.ready()
        tree = kit.process_tree(launched.child.pid)
        assert len(tree) >= 7, "supervisor, engine, core, keeper, nginx and its two workers"
        assert launched.end(number) == 0, launched.stderr
        assert kit.still_there(tree) == []
    assert launched.stderr.splitlines()[-1] == "headrace: stopped"


def test_killing_the_supervisor_leaves_no_orphan(
    kit: Any, launch: Callable[..., Any], folder: Path, real_config: Path
) -> None:
    with launch(folder, "--config", str(real_config), "up") as launched:
        launched.ready()
        tree = kit.process_tree(launched.child.pid)
        launched.end(signal.SIGKILL)
        kit.until(lambda: not kit.still_there(tree), "the end of every process", 10)


def test_killing_the_supervisor_in_the_middle_of_a_stream_leaves_no_orphan(
    kit: Any, launch: Callable[..., Any], folder: Path, real_config: Path
) -> None:
    with launch(folder, "--config", str(real_config), "up") as launched:
        ready = launched.ready()
        with streaming(ready, folder / ".headrace" / "tls" / "ca.pem", max_tokens=1500, ignore_eos=True) as lines:
            next(lines)
            tree = kit.process_tree(launched.child.pid)
            launched.end(signal.SIGKILL)
            kit.until(lambda: not kit.still_there(tree), "the end of every process", 15)


def test_a_stream_that_is_open_when_it_is_told_to_stop_comes_to_its_end(
    kit: Any, launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path], stack: Any
) -> None:
    kit.need("nginx")
    stack.fake.chunks, stack.fake.pause = 20, 0.1
    config = small_config(NGINX.format(port=kit.free_port()))
    with launch(folder, "--config", str(config), "up") as launched:
        with streaming(launched.ready(), folder / ".headrace" / "tls" / "ca.pem") as lines:
            first = next(lines)
            launched.child.send_signal(signal.SIGTERM)
            received = [first, *lines]
        assert received[-1] == "data: [DONE]"
        assert len(received) == 20 + 2
        assert launched.end() == 0


def test_a_second_start_streams_its_first_token_within_five_seconds(
    launch: Callable[..., Any], folder: Path, real_config: Path
) -> None:
    with launch(folder, "--config", str(real_config), "up") as launched:
        launched.ready()
    with launch(folder, "--config", str(real_config), "up") as launched:
        ready = launched.ready()
        to_ready = time.perf_counter() - launched.started
        first_token(ready, folder / ".headrace" / "tls" / "ca.pem")
        seconds = time.perf_counter() - launched.started
    print(f"second start: ready after {to_ready:.2f} s, first token after {seconds:.2f} s")
    assert seconds < 5


def test_the_key_survives_a_restart(
    launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path]
) -> None:
    keys = []
    for _ in range(2):
        with launch(folder, "--config", str(small_config()), "up") as launched:
            keys.append(launched.ready()["key"])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("behind", ["nginx", "core"])
def test_a_taken_port_is_one_clear_message(
    kit: Any, launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path], behind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if behind == "nginx":
            kit.need("nginx")
            config = small_config(NGINX.format(port=port))
        else:
            config = small_config(core_port=port)
        with launch(folder, "--config", str(config), "up") as launched:
            assert launched.child.wait(30) == 1
    assert launched.stdout == []
    about = [line for line in launched.stderr.splitlines() if str(port) in line]
    assert len(about) == 1, launched.stderr
    assert re.search(r"in use|another program", about[0])
    assert "Traceback" not in launched.stderr


def test_without_nginx_it_serves_plain_http_and_says_so_in_one_line(
    launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path]
) -> None:
    config = small_config('[plugins.nginx]\nbinary = "/nonexistent/nginx"\n')
    with launch(folder, "--config", str(config), "up") as launched:
        ready = launched.ready()
        assert ready["url"].startswith("http://127.0.0.1:")
        answer = httpx.get(
            ready["url"] + "/models", headers={"Authorization": f"Bearer {ready['key']}"}, trust_env=False
        )
        assert answer.status_code == 200
    about = [line for line in launched.stderr.splitlines() if "TLS" in line or "nginx" in line]
    assert len(about) == 1, launched.stderr
    assert "without TLS" in about[0]


def test_a_required_nginx_that_is_missing_stops_the_start(
    launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path]
) -> None:
    config = small_config('[plugins.nginx]\nbinary = "/nonexistent/nginx"\nrequired = true\n')
    with launch(folder, "--config", str(config), "up") as launched:
        assert launched.child.wait(30) == 1
    assert "/nonexistent/nginx" in launched.stderr
    assert "Traceback" not in launched.stderr


def test_with_json_the_ready_line_is_an_object(
    launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path]
) -> None:
    config = small_config()
    with launch(folder, "--config", str(config), "up", "--json") as launched:
        ready = json.loads(launched.first_line())
    assert set(ready) == {"url", "key", "model"}
    assert ready["model"] == "test"
    assert len(launched.stdout) == 1


def test_the_printed_command_survives_a_state_directory_with_a_space(
    kit: Any, launch: Callable[..., Any], folder: Path, small_config: Callable[..., Path]
) -> None:
    kit.need("nginx")
    config = small_config(NGINX.format(port=kit.free_port()))
    config.write_text(config.read_text().replace("[server]", f'[server]\nstate_dir = "{folder}/my state"'))
    with launch(folder, "--config", str(config), "up") as launched:
        launched.ready()
        printed = next(line for line in launched.stderr.splitlines() if line.startswith("  curl "))
        assert f"{folder}/my state/tls/ca.pem" in shlex.split(printed)
