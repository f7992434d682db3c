"""How the dialect words errors, and what it reads in replies that are not ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import (
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from headrace.exchange import Usage
from headrace.vetting import BadEvent
from headrace_anthropic.dialect import DIALECT, CountDialect

START = {"input_tokens": 25, "output_tokens": 1, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 5}


def stream(start: Any, end: Any) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "content": [], "usage": start}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": '{"type":"message_delta"}'},
        },
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
        {"type": "message_stop"},
    ]
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)


@pytest.mark.parametrize(
    "error, kind",
    [
        (InvalidRequest(""), "invalid_request_error"),
        (Unauthenticated(""), "authentication_error"),
        (GatewayError("", status=402), "billing_error"),
        (Forbidden(""), "permission_error"),
        (ModelNotFound(""), "not_found_error"),
        (MethodNotAllowed(""), "invalid_request_error"),
        (PayloadTooLarge(""), "request_too_large"),
        (RateLimited(""), "rate_limit_error"),
        (GatewayError(""), "api_error"),
        (UpstreamError(""), "api_error"),
        (Unavailable(""), "overloaded_error"),
        (UpstreamTimeout(""), "timeout_error"),
        (GatewayError("", status=529), "overloaded_error"),
    ],
)
def test_errors_have_anthropics_types(error: GatewayError, kind: str) -> None:
    assert json.loads(DIALECT.error_body(error)) == {"type": "error", "error": {"type": kind, "message": ""}}


def test_an_error_event_is_named_error() -> None:
    name, data, *rest = DIALECT.error_event(UpstreamError("It broke.")).decode().split("\n")
    assert (name, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "It broke."


def test_the_whole_prompt_is_counted_with_what_was_in_the_cache() -> None:
    answer = {"type": "message", "content": [], "usage": {**START, "output_tokens": 7, "cache_creation": {"x": 5}}}
    assert DIALECT.usage(json.dumps(answer).encode()) == Usage(130, 7, 100, tells_cached=True)


def test_a_tools_input_that_looks_like_usage_is_not_counted() -> None:
    call = {"type": "tool_use", "id": "t", "name": "bill", "input": {"usage": {"input_tokens": 9, "output_tokens": 9}}}
    answer = {"usage": {"input_tokens": 1, "output_tokens": 2}, "content": [call]}
    assert DIALECT.usage(json.dumps(answer).encode()) == Usage(1, 2)


def test_a_streams_prompt_is_counted_at_its_start_and_its_answer_at_its_end() -> None:
    assert DIALECT.usage(stream(START, {"output_tokens": 15})) == Usage(130, 15, 100, tells_cached=True)


def test_what_a_streams_end_says_goes_before_its_start() -> None:
    end = {"input_tokens": 30, "output_tokens": 15, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    assert DIALECT.usage(stream(START, end)) == Usage(30, 15, 0, tells_cached=True)


def test_a_stream_without_an_end_is_not_counted() -> None:
    whole = stream(START, {"output_tokens": 15})
    assert DIALECT.usage(whole[: whole.index(b"event: message_delta")]) is None


def test_a_stream_whose_start_is_forgotten_is_not_counted_wrong() -> None:
    whole = stream(START, {"output_tokens": 15})
    assert DIALECT.usage(whole[whole.index(b"event: content_block_delta") :]) is None


@pytest.mark.parametrize("usage", [{"input_tokens": -1, "output_tokens": 2}, {"input_tokens": "1"}, [], None, {}])
def test_usage_that_is_none_is_not_counted(usage: Any) -> None:
    assert DIALECT.usage(json.dumps({"usage": usage}).encode()) is None


@pytest.mark.parametrize("tail", [b"", b"{", b"data: {", b"\xff", b'data: {"type":"message_delta","usage":'])
def test_replies_that_cannot_be_read_are_not_counted(tail: bytes) -> None:
    assert DIALECT.usage(tail) is None


def test_a_request_to_count_costs_nothing() -> None:
    assert CountDialect().usage(b'{"input_tokens": 2095}') == Usage()


@pytest.mark.parametrize(
    "tail, complete",
    [
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (b'event: message_stop\ndata: {"type": "message_stop"}\n\nevent: ping\ndata: {"type": "ping"}\n\n', True),
        (b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n', False),
        (b'data: {"delta":{"text":"{\\"type\\":\\"message_stop\\"}"}}\n\n', False),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\nevent: error\ndata: {"type":"error"}\n\n', False),
        (b'data: {"type":"error","error":{}}\n\ndata: {"type":"message_stop"}\n\n', False),
        (b"", False),
    ],
)
def test_a_stream_is_complete_once_it_says_so(tail: bytes, complete: bool) -> None:
    assert DIALECT.is_complete(tail) is complete


def test_a_stream_is_looked_at_up_to_its_last_event() -> None:
    vetting = DIALECT.vetting(1)
    whole = stream(START, {"output_tokens": 15})
    assert vetting.look(whole[:-3]) and not vetting.finished
    vetting.look(whole[-3:])
    assert vetting.finished


def test_an_error_event_of_the_backend_ends_a_stream() -> None:
    with pytest.raises(BadEvent):
        DIALECT.vetting(1).look(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n')
