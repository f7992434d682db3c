"""Requests that make no sense, or none to a backend that has chats: what is wrong, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FUNCTION = {"type": "function", "name": "f", "parameters": {}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [FUNCTION, {"type": "web_search"}]}, "tools[1].type", "unsupported_tool"),
    *(
        ({"tools": [{"type": kind}]}, "tools[0].type", "unsupported_tool")
        for kind in ("file_search", "code_interpreter", "computer_use_preview", "mcp", "image_generation", "custom")
    ),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_field"),
    ({"tools": [FUNCTION], "tool_choice": "maybe"}, "tool_choice", "invalid_field"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "unsupported_tool"),
    (
        {
            "tools": [FUNCTION],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [FUNCTION | {"name": "g"}]},
        },
        "tool_choice.tools[0].name",
        "invalid_value",
    ),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"input": None}, "input", "missing_field"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": 7}, "input", "invalid_field"),
    ({"input": [{"type": 7}]}, "input[0].type", "invalid_field"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_field"),
    ({"input": [{"content": "hi"}]}, "input[0].role", "missing_field"),
    ({"input": [{"role": "owner", "content": "hi"}]}, "input[0].role", "invalid_field"),
    ({"input": [{"type": "web_search_call", "id": "w"}]}, "input[0].type", "unsupported_value"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_video"}]}]},
        "input[0].content[0].type",
        "invalid_field",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        "input[0].content[0].file_id",
        "unsupported_value",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x/"}]}]},
        "input[0].content[0].file_url",
        "unsupported_value",
    ),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "missing_field"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_field"),
    ({"input": [{"type": "item_reference", "id": "msg_9"}]}, "input[0].id", "item_not_found"),
    ({"input": [{"id": "msg_9"}]}, "input[0].id", "item_not_found"),
    ({"previous_response_id": "resp_9"}, "previous_response_id", "previous_response_not_found"),
]


@pytest.mark.parametrize("fields, param, code", REFUSED, ids=[f"{param}-{code}" for _, param, code in REFUSED])
async def test_a_request_that_makes_no_sense_is_refused_with_what_is_wrong(
    gateway: Callable[..., Any], backend: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    async with gateway() as asker:
        answer = await asker.ask(**fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert backend.requests == []


async def test_without_a_store_nobody_can_go_on_from_an_answer(gateway: Callable[..., Any], backend: Any) -> None:
    async with gateway(store="off") as asker:
        answer = await asker.ask(previous_response_id="resp_9")
    assert answer.json()["error"]["param"] == "previous_response_id"
    assert backend.requests == []


async def test_a_tool_choice_is_carried_in_each_of_its_forms(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said()
    other = {**FUNCTION, "name": "g"}
    forms: list[tuple[Any, Any, list[str]]] = [
        ("required", "required", ["f", "g"]),
        ({"type": "function", "name": "g"}, {"type": "function", "function": {"name": "g"}}, ["f", "g"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
            "required",
            ["g"],
        ),
    ]
    async with gateway() as asker:
        for given, _, _ in forms:
            assert (await asker.ask(tools=[FUNCTION, other], tool_choice=given)).status_code == 200
    seen = [(body["tool_choice"], [tool["function"]["name"] for tool in body["tools"]]) for _, body in backend.requests]
    assert seen == [(choice, names) for _, choice, names in forms]
