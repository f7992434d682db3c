"""A client that leaves takes its request along: the backend's connection is closed at once, the engine stops."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.alone

LIMIT = 0.25
"""Seconds from the client's departure until the backend knows."""
ENDLESS = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 1500,
    "ignore_eos": True,
    "temperature": 0,
}
CHATS = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TEXTS = {"model": "fake", "prompt": "hi"}


def begin(route: Any, path: str, fields: dict[str, Any]) -> socket.socket:
    """Send a request and return its connection."""
    body = json.dumps(fields).encode()
    connection: socket.socket = route.connect()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {route.stack.key}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_events(connection: socket.socket, count: int) -> None:
    received = b""
    while received.count(b"data: ") < count:
        data = connection.recv(65536)
        assert data, received
        received += data


def leave(connection: socket.socket, noticed: Callable[[], bool], kit: Any) -> float:
    """Close the connection; returns the seconds until it was noticed."""
    started = time.perf_counter()
    connection.close()
    kit.until(noticed, "the end of the request")
    return time.perf_counter() - started


@pytest.mark.parametrize("path, fields", [("/v1/chat/completions", CHATS), ("/v1/completions", TEXTS)])
@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_backend_is_left_when_the_client_leaves(
    route: Any, kit: Any, path: str, fields: dict[str, Any], stream: bool
) -> None:
    fake = route.stack.fake
    fake.chunks, fake.pause = 10_000, 0.05 if stream else 60
    with begin(route, path, {**fields, "stream": stream}) as connection:
        if stream:
            read_events(connection, 3)
        kit.until(lambda: any(each[0] == path for each in fake.requests), "the request's arrival at the backend")
        assert not fake.closed_early.is_set()
        seconds = leave(connection, fake.closed_early.is_set, kit)
    print(f"the backend's connection was closed after {seconds * 1000:.0f} ms")
    assert seconds < LIMIT


def test_a_backend_that_has_not_said_anything_is_left_too(route: Any, kit: Any) -> None:
    fake = route.stack.fake
    fake.silent = True
    with begin(route, "/v1/chat/completions", {**CHATS, "stream": True}) as connection:
        kit.until(lambda: any("chat" in each[0] for each in fake.requests), "the request's arrival at the backend")
        seconds = leave(connection, fake.closed_early.is_set, kit)
    print(f"the backend's connection was closed after {seconds * 1000:.0f} ms")
    assert seconds < LIMIT


@pytest.mark.parametrize("stream", [True, False])
def test_the_real_engine_stops_when_the_client_leaves(route: Any, kit: Any, stream: bool) -> None:
    stack = route.stack
    with begin(route, "/v1/chat/completions", {**ENDLESS, "stream": stream}) as connection:
        if stream:
            read_events(connection, 3)
        kit.until(lambda: stack.engine_counters()["requests_processing"] == 1, "the engine's work")
        seconds = leave(connection, stack.engine_is_idle, kit)
    print(f"the engine was idle after {seconds * 1000:.0f} ms")
    assert seconds < LIMIT
    computed = stack.engine_counters()["n_decode_total"]
    assert stack.engine_is_idle()
    assert stack.engine_counters()["n_decode_total"] == computed


def test_the_log_says_that_the_client_left(route: Any, kit: Any) -> None:
    log = route.stack.logs / "requests.log"
    before = log.stat().st_size
    route.stack.fake.pause = 60
    with begin(route, "/v1/chat/completions", CHATS) as connection:
        kit.until(lambda: any("chat" in each[0] for each in route.stack.fake.requests), "the request's arrival")
        connection.close()

    def entry() -> Any:
        with log.open("rb") as file:
            file.seek(before)
            found = (json.loads(line) for line in file.read().rpartition(b"\n")[0].splitlines())
            return next((each for each in found if each.get("aborted")), None)

    said = kit.until(entry, "the request's log line")
    assert (said["http.response.status_code"], said["level"]) == (499, "warning"), said


def test_another_stream_of_the_same_moment_goes_on(route: Any, kit: Any) -> None:
    fake = route.stack.fake
    fake.chunks, fake.pause = 20, 0.02
    with (
        begin(route, "/v1/chat/completions", {**CHATS, "stream": True}) as leaving,
        begin(route, "/v1/chat/completions", {**CHATS, "stream": True}) as staying,
    ):
        read_events(leaving, 2)
        leaving.close()
        kit.until(fake.closed_early.is_set, "the first one's end")
        received = b""
        while b"[DONE]" not in received:
            data = staying.recv(65536)
            assert data, received
            received += data
    assert received.count(b'"content"') == 20
