"""Chats as Messages requests, field by field."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import chat
from headrace.errors import InvalidRequest
from headrace_anthropic.config import Options
from headrace_anthropic.from_chat import as_messages

HELLO = [{"role": "user", "content": "Hello"}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def carried(limit: int | None = None, options: Any = None, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    request = msgspec.convert({"model": "m", "messages": HELLO, **fields}, chat.Request)
    body, dropped = as_messages(request, "claude", limit, Options(**(options or {})))
    return json.loads(body), dropped


def asked(**fields: Any) -> dict[str, Any]:
    """The request of a chat of which nothing is left out."""
    body, dropped = carried(**fields)
    assert dropped == []
    return body


def turns(*messages: dict[str, Any]) -> Any:
    return asked(messages=list(messages))["messages"]


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        carried(**fields)
    return caught.value


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def tool_call(arguments: str, identifier: str = "t1") -> dict[str, Any]:
    return {"id": identifier, "type": "function", "function": {"name": "look", "arguments": arguments}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_a_limit_there_always_is() -> None:
    assert asked()["max_tokens"] == 8192
    assert asked(options={"max_tokens": 100})["max_tokens"] == 100
    assert asked(limit=50)["max_tokens"] == 50
    assert asked(limit=50, max_tokens=10)["max_tokens"] == 10
    assert asked(max_tokens=10, max_completion_tokens=20)["max_tokens"] == 20


def test_what_the_system_says_comes_first_wherever_it_stands() -> None:
    body = asked(
        messages=[
            {"role": "system", "content": "a"},
            *HELLO,
            {"role": "developer", "content": [text("b"), text("c")]},
            user("d"),
        ]
    )
    assert body["system"] == [text("a"), text("b"), text("c")]
    assert body["messages"] == [user([text("Hello"), text("d")])]


def test_results_of_several_calls_are_one_turn_of_the_user() -> None:
    calls = [tool_call('{"at": "sea"}'), tool_call("", "t2")]
    assert turns(
        user("Look"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "t1", "content": "blue"},
        {"role": "tool", "tool_call_id": "t2", "content": [text("red")]},
        user("And?"),
    ) == [
        user("Look"),
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sea"}},
                {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
            ],
        },
        user(
            [
                {"type": "tool_result", "tool_use_id": "t1", "content": "blue"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [text("red")]},
                text("And?"),
            ]
        ),
    ]


@pytest.mark.parametrize(
    "url, source",
    [
        ("data:image/jpeg;base64,/9j/", {"type": "base64", "media_type": "image/jpeg", "data": "/9j/"}),
        ("https://example.com/a.png", {"type": "url", "url": "https://example.com/a.png"}),
    ],
)
def test_pictures_have_a_source(url: str, source: Any) -> None:
    content = [text("This:"), {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    assert turns(user(content))[0]["content"][1] == {"type": "image", "source": source}


@pytest.mark.parametrize(
    "data, source",
    [
        (
            "data:application/pdf;base64,JVBERi0=",
            {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        ),
        ("JVBERi0=", {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}),
        ("data:text/plain;charset=utf-8;base64,w6Q=", {"type": "text", "media_type": "text/plain", "data": "ä"}),
    ],
)
def test_files_are_documents(data: str, source: Any) -> None:
    content = [{"type": "file", "file": {"file_data": data, "filename": "a"}}]
    assert turns(user(content))[0]["content"] == [{"type": "document", "source": source, "title": "a"}]


def test_empty_texts_which_the_api_refuses_are_left_out() -> None:
    assert turns(user([text(""), text("a")]), {"role": "assistant", "content": ""}, user("b")) == [
        user([text("a"), text("b")])
    ]


@pytest.mark.parametrize(
    "choice, parallel, said",
    [
        ("auto", None, {"type": "auto"}),
        ("required", None, {"type": "any"}),
        ("none", False, {"type": "none"}),
        ({"type": "function", "function": {"name": "look"}}, True, {"type": "tool", "name": "look"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, True, None),
    ],
)
def test_a_choice_of_tools_is_carried(choice: Any, parallel: Any, said: Any) -> None:
    body = asked(tools=[LOOK], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == said


def test_without_tools_there_is_no_choice() -> None:
    body, dropped = carried(tool_choice="auto", parallel_tool_calls=False)
    assert "tool_choice" not in body
    assert dropped == ["tool_choice", "parallel_tool_calls"]


def test_a_function_is_a_tool() -> None:
    function = {"name": "look", "description": "Look", "parameters": {"type": "object"}, "strict": True}
    assert asked(tools=[{"type": "function", "function": function}])["tools"] == [
        {"name": "look", "description": "Look", "input_schema": {"type": "object"}, "strict": True}
    ]
    assert asked(tools=[{"type": "function", "function": {"name": "go"}}])["tools"] == [
        {"name": "go", "input_schema": {"type": "object", "properties": {}}}
    ]


def test_a_schema_is_an_output_format() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    assert asked(response_format=wanted)["output_config"] == {
        "format": {"type": "json_schema", "schema": {"type": "object"}}
    }
    assert "output_config" not in asked(response_format={"type": "text"})


@pytest.mark.parametrize(
    "fields, thinking, output, dropped",
    [
        ({}, {"type": "adaptive"}, {"effort": "high"}, []),
        ({"options": {"thinking": "none"}}, None, None, ["reasoning_effort"]),
        ({"options": {"thinking": "budget"}}, {"type": "enabled", "budget_tokens": 8191}, None, []),
        (
            {"options": {"thinking": "budget"}, "max_tokens": 20_000},
            {"type": "enabled", "budget_tokens": 16_384},
            None,
            [],
        ),
        ({"options": {"thinking": "budget"}, "max_tokens": 1024}, None, None, ["reasoning_effort"]),
        (
            {"options": {"thinking": "budget"}, "tools": [LOOK], "tool_choice": "required"},
            None,
            None,
            ["reasoning_effort"],
        ),
        ({"reasoning_effort": "none"}, None, None, []),
        ({"reasoning_effort": "minimal"}, {"type": "adaptive"}, {"effort": "low"}, []),
        ({"reasoning_effort": "gigantic"}, None, None, ["reasoning_effort"]),
    ],
)
def test_an_effort_is_said_as_the_models_know_it(fields: Any, thinking: Any, output: Any, dropped: Any) -> None:
    body, names = carried(**{"reasoning_effort": "high", **fields})
    assert (body.get("thinking"), body.get("output_config"), names) == (thinking, output, dropped)


def test_behind_a_call_no_budget_of_thinking_is_given() -> None:
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [tool_call("{}")]},
        {"role": "tool", "tool_call_id": "t1", "content": "blue"},
    ]
    body, dropped = carried(messages=messages, tools=[LOOK], reasoning_effort="high", options={"thinking": "budget"})
    assert "thinking" not in body
    assert dropped == ["reasoning_effort"]


def test_what_the_api_does_not_have_is_named() -> None:
    _, dropped = carried(
        messages=[
            {"role": "user", "name": "ada", "content": "a"},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "b"},
            user("c"),
        ],
        seed=0,
        presence_penalty=0.1,
        frequency_penalty=0,
        logprobs=True,
        top_logprobs=2,
        logit_bias={"5": -100},
        repetition_penalty=1.0,
        min_p=0.1,
        metadata={"a": "b"},
    )
    assert set(dropped) == {
        *("messages.name", "messages.reasoning_content", "seed", "presence_penalty", "logprobs", "top_logprobs"),
        *("logit_bias", "min_p", "metadata"),
    }


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": [user([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}])]},
            "messages[0].content[0]",
        ),
        ({"messages": [user([{"type": "file", "file": {"file_id": "f"}}])]}, "messages[0].content[0]"),
        (
            {"messages": [user([{"type": "file", "file": {"file_data": "data:text/plain;base64,*"}}])]},
            "messages[0].content[0].file.file_data",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [tool_call("[1]")]}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_must_not_be_left_out_is_refused_by_name(fields: Any, param: str) -> None:
    assert refused(**fields).param == param


# --- nothing is lost silently ---

words = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=6)
objects = st.dictionaries(words, words, max_size=2)
said = st.builds(lambda each: {"type": "text", "text": each}, words)
shown = st.builds(lambda url, detail: {"type": "image_url", "image_url": {"url": url, "detail": detail}}, words, words)
filed = st.builds(lambda data: {"type": "file", "file": {"file_data": data, "filename": data}}, words)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer"]), "content": words | st.lists(said)}, optional={"name": words}
    )
    | st.fixed_dictionaries(
        {"role": st.just("user"), "content": words | st.lists(said | shown | filed)}, optional={"name": words}
    )
    | st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            "content": words | st.lists(said),
            "name": words,
            "refusal": words,
            "reasoning_content": words,
            "tool_calls": st.lists(st.builds(tool_call, objects.map(json.dumps), words), min_size=1, max_size=2),
        },
    )
    | st.fixed_dictionaries(
        {"role": st.just("tool"), "tool_call_id": words, "content": words | st.lists(said | shown)}
    ),
    max_size=5,
)
PLAIN = frozenset(("type", "role"))


def marked(value: Any, count: list[int]) -> Any:
    """The same with texts that stand there once."""
    if isinstance(value, dict):
        return {name: each if name in PLAIN else marked(each, count) for name, each in value.items()}
    if isinstance(value, list):
        return [marked(each, count) for each in value]
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(marked(json.loads(value), count))
    count[0] += 1
    return f"m{count[0]}m" if isinstance(value, str) else value


def leaves(value: Any, path: str = "messages") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for name, each in value.items() if name not in PLAIN for leaf in leaves(each, f"{path}.{name}")]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each, path)]
    if isinstance(value, str) and value.startswith("{"):
        return leaves(json.loads(value), path)
    return [(value, path)] if isinstance(value, str) else []


@settings(max_examples=150, deadline=None)
@given(messages)
def test_every_text_of_a_chat_is_in_the_request_or_named(messages: Any) -> None:
    messages = marked(messages, [100])
    body, dropped = carried(messages=[*messages, user("last")])
    there = json.dumps(body)
    lost = [(each, path) for each, path in leaves(messages) if each not in there]
    assert [
        (each, path) for each, path in lost if not any(path.endswith(name.partition(".")[2]) for name in dropped)
    ] == []


@settings(max_examples=150, deadline=None)
@given(messages)
def test_turns_alternate_and_are_never_empty(messages: Any) -> None:
    body, _ = carried(messages=[*messages, user("last")])
    roles = [message["role"] for message in body["messages"]]
    assert all(one != other for one, other in pairwise(roles))
    assert all(message["content"] for message in body["messages"])
