"""Backends that have chats alone: what they are asked, and how their answers come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def asked(backend: Any) -> Any:
    path, body = backend.requests[-1]
    assert path == "/v1/chat/completions"
    return body


async def test_a_text_is_a_users_message_and_instructions_are_a_system_message(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said("hello yourself")
    async with gateway() as asker:
        answer = await asker.ask(instructions="Be brief.", max_output_tokens=9, temperature=0.5)
    assert answer.status_code == 200, answer.text
    assert asked(backend) == {
        "model": "test",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
    }


async def test_a_whole_answer_has_all_that_the_api_requires(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said("hello yourself")
    async with gateway() as asker:
        body = (await asker.ask(metadata={"a": "b"}, top_p=0.5)).json()
    assert body["id"].startswith("resp_") and body["object"] == "response" and body["created_at"] > 0
    assert (body["status"], body["error"], body["incomplete_details"]) == ("completed", None, None)
    assert (body["metadata"], body["top_p"], body["tools"], body["tool_choice"]) == ({"a": "b"}, 0.5, [], "auto")
    (item,) = body["output"]
    assert item["id"].startswith("msg_")
    assert item["content"] == [{"type": "output_text", "text": "hello yourself", "annotations": [], "logprobs": []}]
    assert body["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }


@pytest.mark.parametrize("reason, why", [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_short_is_incomplete_and_says_why(
    gateway: Callable[..., Any], backend: Any, kit: Any, reason: str, why: str
) -> None:
    backend.reply = kit.said(choice={"finish_reason": reason})
    async with gateway() as asker:
        body = (await asker.ask()).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": why})
    assert body["output"][-1]["status"] == "incomplete"


async def test_thoughts_words_and_calls_are_items_of_their_own(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    backend.reply = kit.said("I look.", message={"reasoning_content": "Hm.", "tool_calls": [call]})
    async with gateway() as asker:
        body = (await asker.ask(tools=[{"type": "function", "name": "look", "parameters": {}}])).json()
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call"]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    made = body["output"][2]
    assert (made["call_id"], made["name"], made["arguments"]) == ("call_1", "look", '{"at":1}')


async def test_a_refusal_is_a_part_of_the_message(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said(message={"content": None, "refusal": "No."})
    async with gateway() as asker:
        body = (await asker.ask()).json()
    assert body["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


async def test_log_probabilities_are_asked_for_and_told(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    token = {"token": "hi", "bytes": [104, 105], "logprob": -0.1, "top_logprobs": []}
    backend.reply = kit.said(choice={"logprobs": {"content": [token]}})
    async with gateway() as asker:
        body = (await asker.ask(include=["message.output_text.logprobs"], top_logprobs=2)).json()
    assert (asked(backend)["logprobs"], asked(backend)["top_logprobs"]) == (True, 2)
    assert body["output"][0]["content"][0]["logprobs"] == [token]


async def test_what_could_not_be_carried_is_named_in_a_header(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said()
    async with gateway() as asker:
        answer = await asker.ask(
            reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"}, max_tool_calls=1, novel=1
        )
    assert answer.headers["x-headrace-dropped"] == "novel, text.verbosity, reasoning.summary, max_tool_calls"
    assert asked(backend)["reasoning_effort"] == "low"


async def test_an_error_of_the_backend_is_told_in_its_own_words(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.status, backend.reply = 400, {"error": {"message": "no such tool", "type": "invalid", "code": 7}}
    async with gateway() as asker:
        answer = await asker.ask()
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no such tool"


async def test_an_answer_without_choices_is_the_backends_fault(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said() | {"choices": []}
    async with gateway() as asker:
        answer = await asker.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


async def test_an_empty_answer_has_a_message_with_no_text(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said("")
    async with gateway() as asker:
        body = (await asker.ask()).json()
    assert body["output"][0]["content"][0]["text"] == ""


async def test_pictures_files_and_sounds_are_carried(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.said()
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
        {"type": "input_file", "file_data": "data:text/plain;base64,AA", "filename": "a.txt"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    async with gateway() as asker:
        await asker.ask(input=[{"role": "user", "content": parts}])
    assert asked(backend)["messages"][0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AA", "filename": "a.txt"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]


async def test_calls_and_their_results_become_one_message_and_its_answers(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.said()
    conversation = [
        {"role": "user", "content": "both?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "I ask."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "More."}]},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "assistant", "content": "Really."},
    ]
    async with gateway() as asker:
        answer = await asker.ask(input=conversation)
    assert answer.status_code == 200, answer.text
    calls = [
        {"id": name, "type": "function", "function": {"name": function, "arguments": "{}"}}
        for name, function in (("a", "f"), ("b", "g"))
    ]
    assert asked(backend)["messages"] == [
        {"role": "user", "content": "both?"},
        {"role": "assistant", "content": "I ask.", "tool_calls": calls, "reasoning_content": "Hm.\n\nMore."},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": "Done."},
        {"role": "assistant", "content": "Really."},
    ]
