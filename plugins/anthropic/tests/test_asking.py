"""Messages requests as chats, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import InvalidRequest
from headrace_anthropic.asking import as_chat

HELLO = [{"role": "user", "content": "Hello"}]
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def carried(**fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    effort = fields.pop("effort", True)
    body, dropped = as_chat(
        json.dumps({"model": "m", "max_tokens": 9, "messages": HELLO, **fields}).encode(), effort=effort
    )
    return json.loads(body), dropped


def chat(**fields: Any) -> dict[str, Any]:
    """The chat of a request of which nothing is left out."""
    body, dropped = carried(**fields)
    assert dropped == ()
    return body


def turns(*messages: tuple[str, Any]) -> list[Any]:
    """The messages of the chat."""
    found: list[Any] = chat(messages=[{"role": role, "content": content} for role, content in messages])["messages"]
    return found


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        carried(**fields)
    return caught.value


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def result(content: Any, identifier: str = "t1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identifier, "content": content, **more}


def call(identifier: str = "t1", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identifier, "name": "look", "input": arguments}


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    assert chat(system=system)["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]


def test_texts_in_several_blocks_are_one_text() -> None:
    assert chat(system=[text("a"), text("b")])["messages"][0]["content"] == "a\n\nb"
    assert turns(("user", [text("a"), text("b")])) == [{"role": "user", "content": "a\n\nb"}]


def test_an_empty_system_prompt_is_no_message() -> None:
    assert chat(system="")["messages"] == chat(system=[])["messages"] == HELLO


def test_what_claude_code_tells_anthropic_of_itself_is_not_told_to_others() -> None:
    body, dropped = carried(system=[text("x-anthropic-billing-header: cc_version=2; cch=00f1;"), text("Be brief.")])
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert dropped == ("system.x-anthropic-billing-header",)


def test_a_system_message_among_the_others_stays_there() -> None:
    assert turns(("user", "a"), ("system", "Now be long."), ("user", "b"))[1] == {
        "role": "system",
        "content": "Now be long.",
    }


def test_messages_of_one_side_are_one_turn() -> None:
    assert turns(("user", "a"), ("user", [text("b")]), ("assistant", "c"), ("assistant", "d"), ("user", "e")) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
    ]


def test_pictures_are_parts_in_their_order() -> None:
    by_address = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    content = [text("This:"), {"type": "image", "source": PNG}, by_address, text("What is it?")]
    assert turns(("user", content))[0]["content"] == [
        text("This:"),
        IMAGE,
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        text("What is it?"),
    ]


def test_a_pdf_is_a_file() -> None:
    content = [{"type": "document", "source": PDF, "title": "a.pdf", "context": "From Ada"}]
    assert turns(("user", content))[0]["content"] == [
        text("From Ada"),
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
    ]


@pytest.mark.parametrize(
    "block, words",
    [
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}, "d"),
        ({"type": "document", "source": {"type": "text", "data": "d"}, "title": "t", "context": "c"}, "t\nc\nd"),
        ({"type": "document", "source": {"type": "content", "content": "d"}, "title": "t"}, "t\n\nd"),
        ({"type": "document", "source": {"type": "content", "content": [text("d"), text("e")]}}, "d\n\ne"),
        ({"type": "search_result", "source": "s", "title": "t", "content": [text("c")]}, "t\ns\nc"),
    ],
)
def test_what_is_text_in_the_end_is_said_as_text(block: Any, words: str) -> None:
    assert turns(("user", [block]))[0]["content"] == words


def test_tool_use_is_a_tool_call() -> None:
    said = turns(("assistant", [text("Let me look."), call(at="sea", n=1)]), ("user", [result("blue")]))
    assert said == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea","n":1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "blue"},
    ]


def test_results_come_before_what_the_user_says_in_the_order_they_were_given() -> None:
    content = [result("blue", "t1"), text("And now?"), result([text("red"), text("green")], "t2")]
    assert turns(("assistant", [call("t1"), call("t2")]), ("user", content))[1:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "blue"},
        {"role": "tool", "tool_call_id": "t2", "content": "red\n\ngreen"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize("content, words", [("no sea", "Error: no sea"), (None, "Error: "), ([text("a")], "Error: a")])
def test_the_result_of_a_tool_that_failed_says_so(content: Any, words: str) -> None:
    said = turns(("assistant", [call()]), ("user", [result(content, is_error=True)]))
    assert said[1] == {"role": "tool", "tool_call_id": "t1", "content": words}


def test_pictures_that_a_tool_returned_are_shown_by_the_user() -> None:
    content = [result([text("a picture"), {"type": "image", "source": PNG}]), text("See?")]
    assert turns(("assistant", [call()]), ("user", content))[1:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "a picture\n\n(See the user's next message.)"},
        {"role": "user", "content": [text("What the tool call t1 returned:"), IMAGE, text("See?")]},
    ]


def test_thoughts_stay_thoughts() -> None:
    body, dropped = carried(
        messages=[
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"},
                    {"type": "redacted_thinking", "data": "Emw"},
                    text("Yes."),
                ],
            },
            *HELLO,
        ]
    )
    assert body["messages"][0] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert dropped == ("messages.signature", "messages.redacted_thinking")


def test_thoughts_that_this_gateway_has_told_come_back_without_loss() -> None:
    content = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("Yes.")]
    assert turns(("assistant", content), ("user", "And?"))[0]["reasoning_content"] == "Hm."


def test_tools_are_functions() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    tools = [{"name": "look", "description": "Look", "input_schema": schema, "strict": True, "type": "custom"}]
    function = {"name": "look", "description": "Look", "parameters": schema, "strict": True}
    assert chat(tools=tools)["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_a_choice_of_tools_is_carried(choice: Any, said: Any) -> None:
    assert chat(tool_choice=choice)["tool_choice"] == said
    assert "parallel_tool_calls" not in chat(tool_choice={**choice, "disable_parallel_tool_use": False})
    assert chat(tool_choice={**choice, "disable_parallel_tool_use": True})["parallel_tool_calls"] is False


def test_sampling_is_carried() -> None:
    body = chat(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["a", "b"], stream=True)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "stop", "stream", "max_tokens")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["a", "b"],
        "stream": True,
        "max_tokens": 9,
    }


@pytest.mark.parametrize(
    "fields, effort, dropped",
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "medium", ()),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, "high", ()),
        ({"thinking": {"type": "adaptive"}}, None, ("thinking",)),
        ({"thinking": {"type": "disabled"}}, None, ("thinking",)),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, None, ("thinking.display", "thinking")),
        ({"output_config": {"effort": "medium"}}, "medium", ()),
        ({"output_config": {"effort": "max"}}, "high", ("output_config.effort",)),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}, "low", ()),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}, None, ("thinking",)),
        (
            {"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 9000}},
            "low",
            ("thinking.budget_tokens",),
        ),
        (
            {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}, "effort": False},
            None,
            ("output_config.effort", "thinking"),
        ),
    ],
)
def test_how_much_to_think_is_said_as_an_effort(fields: Any, effort: Any, dropped: Any) -> None:
    body, names = carried(**fields)
    assert (body.get("reasoning_effort"), names) == (effort, dropped)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_format_is_a_response_format(place: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object", "properties": {}}}
    body = chat(**{place: {"format": wanted} if place == "output_config" else wanted})
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": wanted["schema"], "strict": True},
    }


def test_the_user_is_named() -> None:
    assert chat(metadata={"user_id": "ada"})["user"] == "ada"


def test_nothing_is_left_out_silently() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    _, dropped = carried(
        system=[text("s", **cached)],
        messages=[
            {
                "role": "user",
                "content": [{"type": "document", "source": {**PDF, "x": 1}, "citations": {"enabled": True}}],
            }
        ],
        tools=[{"name": "a", "input_schema": {}, "input_examples": [{}], **cached}],
        tool_choice={"type": "auto", "x": 1},
        metadata={"x": 1},
        output_config={"task_budget": {"total": 9}},
        context_management={"edits": []},
        speed="fast",
        **cached,
    )
    assert set(dropped) == {
        *("system.cache_control", "messages.citations", "messages.source.x", "tools.input_examples"),
        *("tools.cache_control", "tool_choice.x", "metadata.x", "output_config.task_budget", "context_management"),
        *("speed", "cache_control"),
    }


def test_null_is_nothing() -> None:
    assert "tools" not in chat(container=None, mcp_servers=[], cache_control=None, tools=[], stop_sequences=[])


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"container": "c1"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tools": [{"name": "w"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "most"}}, "tool_choice.type"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "mcp_tool_use"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [result([{"type": "tool_reference"}])]}]},
            "messages[0].content[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages.source.file_id",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "u"}}]}]},
            "messages.source",
        ),
        ({"messages": [{"role": "user", "content": [call()]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [result("x")]}, *HELLO]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [text("a"), {"type": "text"}]}]}, "messages[0].content[1].text"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type"),
        ({"system": [{"type": "image", "source": PNG}]}, "system[0].type"),
        ({"system": 7}, "system"),
    ],
)
def test_what_must_not_be_left_out_is_refused_by_name(fields: Any, param: str) -> None:
    assert refused(**fields).param == param
