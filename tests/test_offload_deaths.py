"""While nginx delivers, the core may die, or nginx, or a report get lost: nothing waits for ever or is told twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hi"}]
STREAM = {"model": "fake", "messages": HELLO, "stream": True}


@pytest.fixture
def stack(own_stack: Any) -> Iterator[Any]:
    """A stack of the test's own, for processes that are killed."""
    with own_stack() as stack:
        stack.warm_up()
        yield stack


@pytest.fixture
def impatient_stack(own_stack: Any) -> Iterator[Any]:
    """A stack that waits a second for the report of a stream."""
    with own_stack(server="report_timeout = 1") as stack:
        stack.warm_up()
        yield stack


@contextlib.contextmanager
def open_stream(stack: Any, identifier: str, **fields: Any) -> Iterator[socket.socket]:
    """A stream through nginx that has begun."""
    route = stack.route("nginx")
    with route.connect() as connection:
        connection.sendall(route.request({**STREAM, **fields}, identifier))
        yield connection


def read_on(connection: socket.socket, until: bytes) -> bytes:
    """What comes, up to these bytes."""
    received = b""
    while until not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def lines_of(stack: Any, identifier: str) -> list[dict[str, Any]]:
    text = stack.logs.joinpath("requests.log").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in text.splitlines() if f'"request_id":"{identifier}"' in line]


def ask(stack: Any, identifier: str = "") -> Any:
    return stack.route("nginx").post({"model": "fake", "messages": HELLO}, identifier)


def answers_again(stack: Any, kit: Any) -> None:
    kit.until(lambda: ask(stack).status == 200, "an answer", 20)


def test_streams_that_nginx_delivers_outlive_the_core(stack: Any, kit: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 30, 0.1
    with contextlib.ExitStack() as all_of_them:
        streams = [all_of_them.enter_context(open_stream(stack, uuid.uuid4().hex)) for _ in range(5)]
        begun = [read_on(stream, b"t0 ") for stream in streams]
        os.kill(stack.core_pid(), signal.SIGKILL)
        ended = [start + read_on(stream, b"0\r\n\r\n") for start, stream in zip(begun, streams, strict=True)]
    assert [each.count(b'"content"') for each in ended] == [30] * 5
    assert all(b"data: [DONE]" in each and b'"error"' not in each for each in ended)


def test_after_the_cores_death_requests_are_answered_and_delivered_by_nginx_again(stack: Any, kit: Any) -> None:
    dead = stack.core_pid()
    os.kill(dead, signal.SIGKILL)
    kit.until(lambda: dead not in kit.process_tree(stack.launched.child.pid), "the death of the core")
    answers_again(stack, kit)
    stack.warm_up()
    assert stack.core_pid() != dead


def test_a_request_that_the_dead_core_was_deciding_about_is_a_plain_error(stack: Any, kit: Any) -> None:
    """The backend has failed, and nginx asks a core that does not know the request."""
    stack.raw.tell(b"", "hold")
    with open_stream(stack, uuid.uuid4().hex, model="raw") as connection:
        kit.until(lambda: stack.raw.requests, "the request's arrival")
        dead = stack.core_pid()
        os.kill(dead, signal.SIGKILL)
        kit.until(lambda: dead not in kit.process_tree(stack.launched.child.pid), "the death of the core")
        answers_again(stack, kit)
        stack.raw.drop()
        answer = read_on(connection, b"}}")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "unavailable"
    assert b"\r\nretry-after: 1\r\n" in answer.lower()


def test_the_death_of_an_nginx_worker_ends_what_it_delivered(stack: Any, kit: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 10_000, 0.05
    identifier = uuid.uuid4().hex
    with open_stream(stack, identifier, max_tokens=77) as connection:
        read_on(connection, b"t1 ")
        started = time.monotonic()
        os.kill(stack.worker_pids()[0], signal.SIGKILL)
        line = stack.logged(identifier)
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
    print(f"the core noticed after {seconds:.1f} s")
    assert seconds < 5
    assert (line["error.code"], line["completed"], line["level"]) == ("report_lost", False, "error")
    assert (line["usage_estimated"], line["gen_ai.usage.output_tokens"]) == (True, 77)
    kit.until(stack.fake.closed_early.is_set, "the close of the backend's connection")


def test_after_the_death_of_an_nginx_worker_the_next_one_delivers(stack: Any, kit: Any) -> None:
    (dead,) = stack.worker_pids()
    os.kill(dead, signal.SIGKILL)
    kit.until(lambda: stack.worker_pids() not in ([], [dead]), "the next worker")
    stack.fake.chunks, stack.fake.pause = 3, 0.0
    stack.warm_up()


def test_a_lost_report_is_told_once_and_what_comes_later_changes_nothing(impatient_stack: Any, kit: Any) -> None:
    stack, identifier = impatient_stack, uuid.uuid4().hex
    stack.fake.chunks, stack.fake.pause = 30, 0.1
    with open_stream(stack, identifier, max_tokens=55) as connection:
        line = stack.logged(identifier)
        assert not stack.fake.closed_early.is_set()
        received = read_on(connection, b"0\r\n\r\n")
    assert received.count(b'"content"') == 30
    assert b"data: [DONE]" in received
    assert (line["error.code"], line["completed"]) == ("report_lost", False)
    assert (line["usage_estimated"], line["gen_ai.usage.output_tokens"]) == (True, 55)
    stack.reset()
    stack.warm_up()  # later reports have been read by now
    assert lines_of(stack, identifier) == [line]


def test_a_stream_shorter_than_the_limit_is_no_lost_report(impatient_stack: Any) -> None:
    identifier = uuid.uuid4().hex
    impatient_stack.route("nginx").post(STREAM, identifier)
    assert impatient_stack.logged(identifier)["completed"] is True
    assert len(lines_of(impatient_stack, identifier)) == 1


def test_a_stream_that_nginx_delivers_comes_to_its_end_when_everything_stops(stack: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 20, 0.1
    identifier = uuid.uuid4().hex
    with open_stream(stack, identifier) as connection:
        begun = read_on(connection, b"t0 ")
        stack.launched.child.send_signal(signal.SIGTERM)
        received = begun + read_on(connection, b"0\r\n\r\n")
    assert received.count(b'"content"') == 20
    assert b"data: [DONE]" in received
    assert stack.launched.child.wait(30) == 0
    (line,) = lines_of(stack, identifier)
    assert (line["completed"], line["delivery"]) == (True, "offload")


def test_a_stream_that_an_older_nginx_worker_delivers_is_reported_like_any_other(stack: Any, kit: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 20, 0.1
    (old,) = stack.worker_pids()
    identifier = uuid.uuid4().hex
    with open_stream(stack, identifier) as connection:
        begun = read_on(connection, b"t0 ")
        os.utime(stack.state / "tls" / "server.pem")  # what concerns nginx has changed
        stack.launched.child.send_signal(signal.SIGHUP)
        kit.until(lambda: stack.worker_pids() not in ([], [old]), "the new worker")
        received = begun + read_on(connection, b"0\r\n\r\n")
    assert received.count(b'"content"') == 20
    assert stack.logged(identifier)["completed"] is True
    stack.fake.pause = 0.0
    stack.warm_up()
