"""Who delivers an answer makes no difference to anybody: the same bytes, the same headers, the same account of it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from headrace.testing import CHUNK, COMPLETION, DONE, FINISH, USAGE

HELLO = [{"role": "user", "content": "hi"}]
STREAM = b"".join(CHUNK % number for number in range(3)) + FINISH
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
SHAPES: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "whole chat": ("/v1/chat/completions", {"messages": HELLO}, COMPLETION),
    "streamed chat": ("/v1/chat/completions", {"messages": HELLO, "stream": True}, STREAM + DONE),
    "counted chat": ("/v1/chat/completions", {"messages": HELLO, **COUNTED}, STREAM + USAGE + DONE),
    "uncounted chat": (
        "/v1/chat/completions",
        {"messages": HELLO, "stream": True, "stream_options": {"include_usage": False}},
        STREAM + DONE,
    ),
    "whole text": ("/v1/completions", {"prompt": "hi"}, COMPLETION),
    "streamed text": ("/v1/completions", {"prompt": "hi", "stream": True}, STREAM + DONE),
    "embeddings": ("/v1/embeddings", {"input": "hi"}, COMPLETION),
}
"""Requests, and the body that the caller gets for each."""
OUTCOME = (
    "http.response.status_code",
    "completed",
    "aborted",
    "level",
    "target",
    "attempts",
    "http.response.body.size",
    "usage_estimated",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.request.stream",
    "error.type",
    "error.code",
    "error.message",
)
"""What the log says of a request whoever delivered its answer; times and sizes of pieces differ by nature."""
NGINX_SAYS = {
    *("server", "date", "connection", "transfer-encoding", "content-length"),
    *("x-content-type-options", "x-frame-options", "referrer-policy", "x-request-id"),
}
"""Headers that nginx adds to every answer, or that belong to one connection."""


def ask(route: Any, model: str, shape: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The answer, and what the log says of it."""
    path, fields, _ = SHAPES[shape]
    identifier = uuid.uuid4().hex
    answer = route.post({"model": model, **fields}, identifier, path=path, **more)
    assert answer.headers["x-request-id"] == identifier
    return answer, route.stack.logged(identifier)


def told(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in OUTCOME if name in line}


def headers(answer: Any) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in answer.headers.items() if name.lower() not in NGINX_SAYS)


@pytest.fixture
def both(stack: Any, kit: Any) -> Callable[..., list[tuple[Any, dict[str, Any]]]]:
    """Ask through nginx, and ask the core itself, whose delivery is always inline."""
    kit.need("nginx")
    return lambda *what, **more: [ask(stack.route(name), *what, **more) for name in ("nginx", "core")]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_says_who_delivered(route: Any, shape: str) -> None:
    _, line = ask(route, "fake", shape)
    assert line["delivery"] == route.delivery


def test_the_log_says_why_nginx_delivered(front: Any) -> None:
    expected = {"inline": "configured", "offload": "nothing needs the reply's bytes"}
    _, line = ask(front, "fake", "streamed chat")
    assert line["delivery_reason"] == expected[front.delivery]


def test_a_model_may_keep_its_answers_to_the_core(front: Any) -> None:
    _, line = ask(front, "kept", "streamed chat")
    assert (line["delivery"], line["delivery_reason"]) == ("inline", "configured")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_caller_gets_the_backends_bytes(route: Any, shape: str) -> None:
    answer, _ = ask(route, "fake", shape)
    assert (answer.status, answer.body, answer.whole) == (200, SHAPES[shape][2], True)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_tells_the_same_of_both_deliveries(both: Any, shape: str) -> None:
    (_, by_nginx), (_, by_core) = both("fake", shape)
    assert told(by_nginx) == told(by_core)
    assert by_core["completed"] is True


@pytest.mark.parametrize("shape", SHAPES)
def test_both_deliveries_give_the_same_headers(both: Any, shape: str) -> None:
    (by_nginx, _), (by_core, _) = both("fake", shape)
    assert headers(by_nginx) == headers(by_core)


def test_both_deliveries_pass_on_the_same_headers_of_a_backend(both: Any, stack: Any) -> None:
    stack.fake.response_headers = {
        "X-Mine": "kept",
        "Retry-After": "7",
        "X-RateLimit-Remaining-Tokens": "12",
        "OpenAI-Organization": "acme",
        "OpenAI-Processing-Ms": "17",
        "OpenAI-Version": "2020-10-01",
        "ETag": '"1"',
        "Cache-Control": "no-cache",
        "Via": "1.1 vegur",
        "Vary": "Accept-Encoding",
    }
    (by_nginx, _), (by_core, _) = both("fake", "whole chat")
    assert headers(by_nginx) == headers(by_core)
    assert by_core.headers["x-mine"] == "kept"


@pytest.mark.parametrize("shape", ["whole chat", "streamed chat"])
def test_a_page_may_read_the_answer_whoever_delivers_it(both: Any, page_port: int, shape: str) -> None:
    origin = f"http://127.0.0.1:{page_port}"
    (by_nginx, line), (by_core, _) = both("fake", shape, headers=[f"Origin: {origin}"])
    assert headers(by_nginx) == headers(by_core)
    assert by_nginx.headers["access-control-allow-origin"] == origin
    assert line["delivery_reason"] in ("configured", "nothing needs the reply's bytes")


@pytest.mark.parametrize("shape", ["streamed chat", "uncounted chat", "streamed text"])
def test_usage_is_counted_though_the_caller_did_not_ask_and_is_not_shown(route: Any, shape: str) -> None:
    answer, line = ask(route, "fake", shape)
    assert (line["gen_ai.usage.input_tokens"], line["gen_ai.usage.output_tokens"]) == (5, 3)
    assert "usage_estimated" not in line
    assert b"usage" not in answer.body


def test_the_backend_is_asked_for_the_usage_whoever_asks_it(both: Any, stack: Any) -> None:
    both("fake", "streamed chat")
    bodies = [json.loads(body) for path, _, body in stack.fake.requests if path.endswith("/chat/completions")]
    assert [body["stream_options"] for body in bodies] == [{"include_usage": True}] * 2


def test_the_backend_gets_the_same_request_whoever_asks_it(both: Any, stack: Any) -> None:
    more = ["User-Agent: mine/1", "OpenAI-Beta: assistants=v2", "Traceparent: 00-1-2-03", "Accept: text/event-stream"]
    both("fake", "streamed chat", headers=[*more, "Cookie: a=b", "X-Other: o", "Referer: r"])
    one, other = (each for each in stack.fake.requests if each[0].endswith("/chat/completions"))
    assert one[1].pop("x-request-id") != other[1].pop("x-request-id")
    assert one[1].pop("connection", "keep-alive") == other[1].pop("connection", "keep-alive")
    assert one == other
    assert {"cookie", "x-other", "referer"} & set(one[1]) == set()


def test_a_plugin_that_watches_bytes_keeps_the_answer_at_the_core(own_stack: Any) -> None:
    with own_stack(logs="bodies = true") as stack:
        answer, line = ask(stack.route("nginx"), "fake", "streamed chat")
    assert answer.body == STREAM + DONE
    assert (line["delivery"], line["delivery_reason"]) == ("inline", "the plugin 'logs' watches the reply")


def test_strangers_are_answered_by_nginx_too(own_stack: Any) -> None:
    with own_stack(server="anonymous = true") as stack:
        stack.warm_up()
        answer, line = ask(stack.route("nginx"), "fake", "streamed chat", key=None)
    assert (answer.status, line["delivery"], line["user.id"]) == (200, "offload", "anonymous")


def test_without_anybody_who_counts_tokens_streams_are_as_they_were(own_stack: Any) -> None:
    with own_stack(logs="usage = false") as stack:
        stack.warm_up()
        found = {shape: ask(stack.route("nginx"), "fake", shape) for shape in SHAPES}
        asked = [json.loads(body) for path, _, body in stack.fake.requests[-len(SHAPES) :]]
    assert {shape: answer.body for shape, (answer, _) in found.items()} == {n: s[2] for n, s in SHAPES.items()}
    assert {line["completed"] and line["delivery"] for _, line in found.values()} == {"offload"}
    assert [body.get("stream_options") for body in asked] == [f.get("stream_options") for _, f, _ in SHAPES.values()]


@pytest.mark.parametrize("shape", ["whole chat", "streamed chat"])
def test_an_answers_end_is_told_though_the_client_does_not_hang_up(route: Any, shape: str) -> None:
    path, fields, _ = SHAPES[shape]
    identifier = uuid.uuid4().hex
    with route.connect() as connection:
        connection.sendall(route.request({"model": "fake", **fields}, identifier, path=path))
        started = time.monotonic()
        line = route.stack.logged(identifier)
        seconds = time.monotonic() - started
    assert line["completed"] is True
    assert seconds < 2
