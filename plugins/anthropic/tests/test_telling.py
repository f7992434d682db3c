"""Whole answers, both ways."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from headrace import chat
from headrace.errors import UpstreamError
from headrace.exchange import Reply, Target
from headrace_anthropic import reply, telling


@pytest.fixture
def told(kit: Any) -> Any:
    """The message that a completion is."""

    def tell(finish: str | None = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
        choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
        completion = msgspec.convert({"id": "c", "choices": [choice], "usage": usage}, chat.Completion)
        found: dict[str, Any] = json.loads(telling.whole(completion, kit.an_exchange()))
        return found

    return tell


def call(arguments: str, identifier: str = "t") -> dict[str, Any]:
    return {"id": identifier, "type": "function", "function": {"name": "look", "arguments": arguments}}


def test_the_message_has_all_fields_that_clients_read(told: Any) -> None:
    message = told(content="Hi", usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    assert message == {
        "id": "msg_r1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }


def test_calls_make_it_a_tool_use_whatever_the_engine_says(told: Any) -> None:
    message = told("stop", content=None, tool_calls=[call('{"at": "sea"}'), call("", "u")])
    assert message["stop_reason"] == "tool_use"
    assert [block["input"] for block in message["content"]] == [{"at": "sea"}, {}]


def test_a_call_that_the_limit_has_cut_is_not_given_to_be_made(told: Any) -> None:
    message = told("length", content="Look:", tool_calls=[call('{"at": "se')])
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "Look:"}], "max_tokens")


def test_a_refusal_is_said_as_text(told: Any) -> None:
    message = told("stop", refusal="I will not.")
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "I will not."}], "refusal")


def test_thoughts_come_first_by_either_name(told: Any) -> None:
    for name in ("reasoning", "reasoning_content"):
        assert told(content="Yes", **{name: "Hm."})["content"][0] == {
            "type": "thinking",
            "thinking": "Hm.",
            "signature": "",
        }


def test_tokens_that_nobody_counted_are_estimated_and_marked(told: Any) -> None:
    usage = told(content="word " * 40)["usage"]
    assert (usage["output_tokens"], usage["estimated"]) == (50, True)


def test_an_answer_without_a_choice_is_none(kit: Any) -> None:
    with pytest.raises(UpstreamError):
        telling.whole(chat.Completion("c", []), kit.an_exchange())


@pytest.mark.parametrize(
    "reason, finish",
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_the_reason_of_the_end_is_told_to_a_chat(reason: str, finish: str) -> None:
    answer = {"content": [{"type": "text", "text": "a"}], "stop_reason": reason}
    completion = json.loads(reply.whole(json.dumps(answer).encode()))
    assert completion["choices"][0]["finish_reason"] == finish


def test_an_explained_refusal_is_told_to_a_chat() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "No exploits."}
    answer = {"content": [], "stop_reason": "refusal", "stop_details": details}
    assert json.loads(reply.whole(json.dumps(answer).encode()))["choices"][0]["message"]["refusal"] == "No exploits."


def test_blocks_of_a_kind_that_is_not_known_are_no_harm() -> None:
    answer = {"content": [{"type": "web_search_tool_result", "content": [{}]}, {"type": "text", "text": "a"}]}
    assert json.loads(reply.whole(json.dumps(answer).encode()))["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"content": [{"type": 1}]}'])
def test_answers_that_cannot_be_read_are_errors(content: bytes) -> None:
    with pytest.raises(UpstreamError):
        reply.whole(content)


def test_a_refusal_that_cannot_be_read_is_told_all_the_same() -> None:
    told = json.loads(reply.refusal(Reply(418, [], content=b'{"teapot": true}')))
    assert told["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 429, 500, 503, 529, 302])
def test_what_is_not_the_callers_fault_is_raised(status: int) -> None:
    target = Target(name="t", provider="anthropic", base_url="http://h/v1")
    body = b'{"type":"error","error":{"type":"x","message":"y"}}'
    if status == 404:
        reply.judge(Reply(status, [], content=body), target)
    else:
        with pytest.raises(Exception, match="backend") as caught:
            reply.judge(Reply(status, [], content=body), target)
        assert "y" not in str(caught.value).split()
