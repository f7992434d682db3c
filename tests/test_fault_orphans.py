"""However a request ends, the backend's connection ends with it: nothing is computed that nobody waits for."""

from __future__ import annotations

import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .fault_fleet import CLOSE_LIMIT, HELLO, WAYS, Fleet, fleet, until_closed
from .faults import Answer, Behaviour, Break, Fail, Silent, busy

RETRY = "retry = { backoff = 0.02, max_backoff = 0.05, budget = 100 }"
MODELS = f"""
alone = {{ targets = ["a"], {RETRY} }}
pair = {{ targets = ["a", "b-hurried"], {RETRY} }}
prompt = {{ targets = ["a", "b"], {RETRY}, deadlines = {{ first_token = 0.5 }} }}
both = {{ targets = ["a", "b"], {RETRY} }}
brief = {{ targets = ["a"], {RETRY}, deadlines = {{ total = 0.8 }} }}
"""
SHUTDOWN_SECONDS = 5.0
"""For so long the gateway of these tests waits for open requests when it is told to stop."""
STATES: dict[str, tuple[bool, Behaviour, int]] = {
    "before the head": (True, Silent(), 0),
    "before the head of a whole answer": (False, Answer(pause=60), 0),
    "in the middle of a whole answer": (False, Answer(then="silence"), 0),
    "after the head": (True, Answer(cut=-1, then="silence"), 0),
    "after the role": (True, Answer(cut=0, then="silence"), 1),
    "among tokens": (True, Answer(pause=0.2), 3),
    "after some tokens, in silence": (True, Answer(cut=3, then="silence"), 4),
}
"""How far an answer has come: whether it is a stream, what the backend does, and how many events there are."""
STREAMS = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module", params=WAYS)
def running(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet(own_stack, request.param, MODELS, names="ab") as made:
        yield made


@pytest.fixture(autouse=True)
def afresh(running: Fleet) -> None:
    running.reset()


def begin(running: Fleet, kit: Any, model: str, stream: bool, events: int, identifier: str = "") -> socket.socket:
    """Ask, and read so many events of the answer."""
    connection = running.route.connect()
    connection.sendall(running.route.request({"model": model, "messages": HELLO, "stream": stream}, identifier))
    received = b""
    while received.count(b"\n\n") < events:
        received += (data := connection.recv(65536))
        assert data, received
    kit.until(lambda: running["a"].requests, "the request's arrival at the backend")
    return connection


@pytest.mark.parametrize("name", STATES)
def test_a_client_that_leaves_ends_the_backends_work(running: Fleet, kit: Any, name: str) -> None:
    stream, behaviour, events = STATES[name]
    running["a"].default = behaviour
    with begin(running, kit, "alone", stream, events):
        assert running["a"].open == 1
        left = time.monotonic()
    assert until_closed(running["a"], left) < CLOSE_LIMIT
    assert running.asked() == {"a": 1}


@STREAMS
def test_a_client_that_leaves_ends_the_work_of_the_second_target(running: Fleet, kit: Any, stream: bool) -> None:
    running["a"].default, running["b"].default = Break(), Answer(before=60)
    with begin(running, kit, "both", stream, 0):
        kit.until(lambda: running["b"].requests, "the request's arrival at the second backend")
        left = time.monotonic()
    assert until_closed(running["b"], left) < CLOSE_LIMIT


@STREAMS
def test_a_client_that_leaves_while_a_backend_wants_to_be_left_alone_ends_it(
    running: Fleet, kit: Any, stream: bool
) -> None:
    running["a"].default = busy(5)
    identifier = uuid.uuid4().hex
    with begin(running, kit, "alone", stream, 0, identifier):
        kit.until(lambda: running["a"].requests[0].over_at, "the backend's answer")
    line = running.stack.logged(identifier)
    assert (line["aborted"], line["attempts"]) == (True, 1)
    assert line["duration_seconds"] < 3


def test_many_clients_that_leave_leave_nothing_behind(running: Fleet, kit: Any) -> None:
    running["a"].default = Answer(pause=60)
    with ExitStack() as open_ones:
        for number in range(24):
            body = {"model": "alone", "messages": HELLO, "stream": bool(number % 3)}
            open_ones.enter_context(connection := running.route.connect())
            connection.sendall(running.route.request(body))
        kit.until(lambda: running["a"].open == 24, "the arrival of all")
        left = time.monotonic()
    kit.until(running.at_rest, "the end of all", CLOSE_LIMIT)
    slowest = max(each.left_at or 0.0 for each in running["a"].requests) - left
    print(f"the last connection was closed after {slowest * 1000:.0f} ms")
    assert slowest < CLOSE_LIMIT


def test_a_backend_that_is_given_up_before_its_first_token_is_left_before_the_next_is_asked(running: Fleet) -> None:
    running["a"].default = Answer(cut=0, then="silence")
    assert running.ask("prompt", stream=True).model == "b-large"
    closed = until_closed(running["a"], running["a"].requests[0].at + 0.5)
    assert closed < CLOSE_LIMIT


@STREAMS
def test_a_deadline_ends_the_backends_work(running: Fleet, stream: bool) -> None:
    running["a"].default = Answer(pause=0.1 if stream else 60)
    assert not running.ask("brief", stream).whole
    assert until_closed(running["a"], running["a"].requests[0].at + 0.8) < CLOSE_LIMIT


def test_a_backend_that_keeps_silent_is_left_when_its_time_is_over(running: Fleet) -> None:
    running["a"].default, running["b"].default = Fail(500), Answer(before=60)
    got = running.ask("pair", stream=True)
    assert got.code == "upstream_error"  # a was the last to be asked
    assert until_closed(running["b"], running["b"].requests[0].at + 1) < CLOSE_LIMIT


def test_a_gateway_that_stops_leaves_no_request_behind(running: Fleet, kit: Any) -> None:
    """The last test of this stack."""
    ways: list[tuple[bool, Behaviour]] = [
        (False, busy(9)),
        *((stream, behaviour) for stream, behaviour, _ in STATES.values()),
    ]
    running["a"].script(*(behaviour for _, behaviour in ways))
    with ExitStack() as open_ones:
        for number, (stream, _) in enumerate(ways, 1):
            open_ones.enter_context(connection := running.route.connect())
            connection.sendall(running.route.request({"model": "alone", "messages": HELLO, "stream": stream}))
            kit.until(lambda: len(running["a"].requests) == number, "the request's arrival")  # noqa: B023
        began = time.monotonic()
        assert running.stack.launched.end(signal.SIGTERM) == 0
    ended = time.monotonic()
    kit.until(lambda: running["a"].connections == 0, "the end of all", CLOSE_LIMIT)
    slowest = max(each.left_at or each.over_at or 0.0 for each in running["a"].requests) - began
    print(
        f"the last connection was closed {slowest:.2f} s after the signal, the gateway {ended - began:.2f} s after it"
    )
    assert slowest < SHUTDOWN_SECONDS + CLOSE_LIMIT
