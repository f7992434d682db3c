"""Answers that do not come to their end: the caller can tell, and so can the log, whoever delivers."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.testing import CHUNK, COMPLETION, DONE, FINISH

HELLO = [{"role": "user", "content": "hi"}]
PIECE = CHUNK % 0
STREAM: dict[str, Any] = {"messages": HELLO, "stream": True}
BREAKS = ["close", "reset"]
OUTCOME = (
    *("http.response.status_code", "completed", "aborted", "level", "http.response.body.size", "error.code"),
    *("usage_estimated", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
)


def ask(route: Any, model: str = "raw", **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The answer, and what the log says of it."""
    identifier = uuid.uuid4().hex
    answer = route.post({"model": model, "messages": HELLO, **fields}, identifier)
    return answer, route.stack.logged(identifier)


def unframed(body: bytes, kind: str = "text/event-stream") -> bytes:
    """An answer that only the connection's end ends."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nConnection: close\r\n\r\n%s" % (kind.encode(), body)


Made = Callable[[Any], bytes]
CUT_STREAMS: dict[str, tuple[Made, str]] = {
    "closed between events": (lambda kit: kit.chunked(PIECE, PIECE, last=False), "close"),
    "reset between events": (lambda kit: kit.chunked(PIECE, PIECE, last=False), "reset"),
    "closed in an event": (lambda kit: kit.chunked(PIECE, PIECE[:30], last=False), "close"),
    "closed in a chunk": (lambda kit: kit.chunked(PIECE, last=False) + b"64\r\n" + PIECE[:30], "close"),
    "ended without an end": (lambda kit: kit.chunked(PIECE, PIECE), "next"),
    "ended in an event": (lambda kit: kit.chunked(PIECE, PIECE[:30]), "next"),
    "an error for its end": (lambda kit: kit.chunked(PIECE, b'data: {"error":{"message":"boom"}}\n\n'), "next"),
    "without framing": (lambda kit: unframed(PIECE + PIECE), "close"),
}


@pytest.mark.parametrize("name", CUT_STREAMS)
def test_a_cut_stream_ends_with_an_error_event_and_as_http_ends(route: Any, kit: Any, name: str) -> None:
    made, then = CUT_STREAMS[name]
    route.stack.raw.tell(made(kit), then)
    answer, _ = ask(route, stream=True)
    assert answer.body.startswith(PIECE)
    assert json.loads(answer.events[-1])["error"]["code"] == "stream_truncated"
    assert b"[DONE]" not in answer.body
    assert answer.whole


@pytest.mark.parametrize("name", CUT_STREAMS)
def test_the_connection_over_which_a_cut_stream_came_serves_the_next_request(route: Any, kit: Any, name: str) -> None:
    if route.name == "nginx" and route.stack.scripted:
        pytest.skip("nginx gives it up, and a script cannot tell it otherwise")
    made, then = CUT_STREAMS[name]
    route.stack.raw.tell(made(kit), then)
    with route.client() as client:
        assert "stream_truncated" in client.post("/v1/chat/completions", json=dict(model="raw", **STREAM)).text
        connection = client._transport._pool.connections[0]
        assert client.get("/v1/models").status_code == 200
        assert client._transport._pool.connections == [connection]


@pytest.mark.parametrize("name", CUT_STREAMS)
def test_the_log_calls_a_cut_stream_cut(route: Any, kit: Any, name: str) -> None:
    made, then = CUT_STREAMS[name]
    route.stack.raw.tell(made(kit), then)
    answer, line = ask(route, stream=True)
    assert (line["completed"], line["aborted"], line["error.code"]) == (False, False, "stream_truncated")
    assert (line["level"], line["http.response.body.size"]) == ("error", len(answer.body))


def test_both_deliveries_say_the_same_of_a_cut_stream(stack: Any, kit: Any) -> None:
    kit.need("nginx")
    stack.fake.cut_after, stack.fake.pause = 2, 0.05
    by_nginx, by_core = (ask(stack.route(name), "fake", stream=True) for name in ("nginx", "core"))
    assert by_nginx[0].body == by_core[0].body
    assert {name: by_nginx[1].get(name) for name in OUTCOME} == {name: by_core[1].get(name) for name in OUTCOME}
    assert by_nginx[1]["error.message"] == by_core[1]["error.message"]


def test_what_a_cut_stream_has_cost_is_estimated(route: Any) -> None:
    route.stack.fake.chunks, route.stack.fake.pause, route.stack.fake.cut_after = 7, 0.05, 5
    _, line = ask(route, "fake", stream=True)
    asked = len(json.dumps({"model": "fake", "messages": HELLO, "stream": True}))
    assert line["usage_estimated"] is True
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (asked // 4, 5)


@pytest.mark.parametrize(
    "end",
    [DONE, b"data: [DONE]", FINISH, FINISH + b": ping\n\n", DONE.replace(b"\n", b"\r\n")],
    ids=["done", "done, no blank line", "a reason alone", "a comment last", "CR and LF"],
)
def test_a_stream_that_came_to_its_end_is_left_as_it_is(route: Any, kit: Any, end: bytes) -> None:
    route.stack.raw.tell(kit.chunked(PIECE, end))
    answer, line = ask(route, stream=True)
    assert (answer.body, answer.whole, line["completed"]) == (PIECE + end, True, True)


@pytest.mark.parametrize("then", BREAKS)
def test_a_stream_without_an_event_is_no_success(route: Any, kit: Any, then: Any) -> None:
    route.stack.raw.tell(kit.chunked(last=False), then)
    answer, line = ask(route, stream=True)
    error = json.loads(answer.events[-1].strip())["error"]  # offload: the head with its 200 is out by then
    assert error["code"] in ("upstream_error", "stream_truncated")
    assert (line["completed"], line["aborted"], line["level"]) == (False, False, "error")


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CUT_WHOLES: dict[str, bytes] = {
    "in its body": WHOLE + b"Content-Length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION[:-20],
    "before its body": WHOLE + b"Content-Length: %d\r\n\r\n" % len(COMPLETION),
    "in its chunks": WHOLE + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(COMPLETION), COMPLETION[:-20]),
    "before its chunks": WHOLE + b"Transfer-Encoding: chunked\r\n\r\n",
    "before its last chunk": WHOLE + b"Transfer-Encoding: chunked\r\n\r\n14\r\n%s\r\n" % COMPLETION[:20],
    "without framing": unframed(COMPLETION[:-20], "application/json"),
}


@pytest.mark.parametrize("then", BREAKS)
@pytest.mark.parametrize("name", CUT_WHOLES)
def test_a_cut_whole_answer_is_never_taken_for_a_whole_one(route: Any, name: str, then: Any) -> None:
    route.stack.raw.tell(CUT_WHOLES[name], then)
    answer, line = ask(route)
    assert answer.status == 502 or not answer.whole  # offload: the head with its 200 is out by then
    assert (line["completed"], line["aborted"], line["level"]) == (False, False, "error")


def test_a_whole_answer_without_framing_is_whole(route: Any) -> None:
    route.stack.raw.tell(unframed(COMPLETION + b"\n", "application/json"), "close")
    answer, line = ask(route)
    assert (answer.status, answer.body, answer.whole) == (200, COMPLETION + b"\n", True)
    assert (line["completed"], line["gen_ai.usage.input_tokens"]) == (True, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_falls_silent_is_left(route: Any, kit: Any, stream: bool) -> None:
    said = kit.chunked(PIECE, last=False) if stream else CUT_WHOLES["in its body"]
    route.stack.raw.tell(said, "hold")
    answer, line = ask(route, "impatient", stream=stream)
    assert answer.whole == (stream or answer.status == 504)
    assert (line["completed"], line["aborted"], line["level"]) == (False, False, "error")
    kit.until(route.stack.raw.closed_early.is_set, "the close of the backend's connection")


def read_events(connection: socket.socket, count: int) -> None:
    received = b""
    while received.count(b"data: ") < count:
        received += (data := connection.recv(65536))
        assert data, received


def test_a_client_that_leaves_a_stream_is_settled_by_an_estimate(route: Any, kit: Any) -> None:
    identifier, fake = uuid.uuid4().hex, route.stack.fake
    fake.chunks, fake.pause = 10_000, 0.02
    with route.connect() as connection:
        connection.sendall(route.request({"model": "fake", "messages": HELLO, "stream": True}, identifier))
        read_events(connection, 3)
    line = route.stack.logged(identifier)
    assert (line["http.response.status_code"], line["completed"], line["aborted"]) == (200, False, True)
    assert (line["level"], line["usage_estimated"], line["delivery"]) == ("warning", True, route.delivery)
    assert 3 <= line["gen_ai.usage.output_tokens"] < 100


def test_a_client_that_leaves_before_the_head_is_499(route: Any, kit: Any) -> None:
    identifier, fake = uuid.uuid4().hex, route.stack.fake
    fake.silent = True
    with route.connect() as connection:
        connection.sendall(route.request({"model": "fake", "messages": HELLO, "stream": True}, identifier))
        kit.until(lambda: any("chat" in path for path, _, _ in fake.requests), "the request's arrival at the backend")
    line = route.stack.logged(identifier)
    assert (line["http.response.status_code"], line["completed"], line["aborted"]) == (499, False, True)
    assert line["delivery"] == route.delivery


def test_a_client_that_leaves_between_two_tries_ends_the_second_one(route: Any, kit: Any) -> None:
    identifier, fake = uuid.uuid4().hex, route.stack.fake
    route.stack.raw.tell(b"", "close")
    fake.silent = True
    with route.connect() as connection:
        connection.sendall(route.request({"model": "raw_rescued", "messages": HELLO}, identifier))
        kit.until(lambda: any("chat" in path for path, _, _ in fake.requests), "the request's arrival at the backend")
    kit.until(fake.closed_early.is_set, "the close of the backend's connection")
    line = route.stack.logged(identifier)
    assert (line["aborted"], line["attempts"], line["target"]) == (True, 2, "fake")


@pytest.fixture(scope="module")
def uncounted(own_stack: Any) -> Iterator[Any]:
    """A stack in which nobody wants to know tokens."""
    with own_stack(logs="usage = false") as stack:
        stack.warm_up()
        yield stack


@pytest.mark.parametrize("then", BREAKS)
def test_without_anybody_who_counts_tokens_a_cut_stream_is_called_cut(uncounted: Any, kit: Any, then: Any) -> None:
    uncounted.raw.tell(kit.chunked(PIECE, PIECE, last=False), then)
    found = [ask(uncounted.route("nginx"), stream=True) for _ in range(10)]  # it depends on what comes together
    assert all(b"stream_truncated" in answer.body or not answer.whole for answer, _ in found)
    assert {(line["completed"], line["aborted"], line["level"]) for _, line in found} == {(False, False, "error")}


@pytest.mark.parametrize("then", BREAKS)
@pytest.mark.parametrize("name", ["in its body", "before its body", "in its chunks"])
def test_without_anybody_who_counts_tokens_a_cut_whole_answer_is_too(uncounted: Any, name: str, then: Any) -> None:
    uncounted.raw.tell(CUT_WHOLES[name], then)
    found = [ask(uncounted.route("nginx")) for _ in range(10)]
    assert {answer.whole for answer, _ in found} == {False}
    assert {(line["completed"], line["aborted"], line["level"]) for _, line in found} == {(False, False, "error")}
