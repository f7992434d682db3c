"""Chats: what Ollama is asked, and what a client is answered."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

Site = Callable[..., Any]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
PIXEL = base64.b64encode(b"\x89PNG pixel").decode()


def picture(url: str = f"data:image/png;base64,{PIXEL}", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


async def test_a_chat_is_answered(site: Site) -> None:
    async with site() as client:
        reply = await client.chat()
        assert reply.json()["choices"] == [
            {
                "message": {"role": "assistant", "content": "Hello!"},
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
            }
        ]
        assert reply.json()["usage"]["prompt_tokens"] == 26
        assert reply.json()["usage"]["completion_tokens"] == 3
        assert reply.json()["object"] == "chat.completion"
        assert "x-headrace-dropped" not in reply.headers


async def test_ollama_is_asked_at_its_own_path_for_its_own_model(site: Site) -> None:
    async with site(api_key="sk-1", headers={"X-Team": "a"}) as client:
        await client.chat(stream=False)
        ((method, path, headers, fields),) = client.fake.requests
    assert (method, path) == ("POST", "/api/chat")
    assert (headers["authorization"], headers["x-team"]) == ("Bearer sk-1", "a")
    assert headers["content-type"] == "application/json"
    assert fields == {
        "model": "llama3.2",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "truncate": False,
        "shift": False,
    }


async def test_without_a_model_of_its_own_the_backend_is_asked_for_the_clients(site: Site) -> None:
    async with site(model=None, tables={"models": {"llama3.2": {"targets": ["gpu"]}}}) as client:
        assert (await client.chat(model="llama3.2")).status_code == 200
        assert client.fake.asked["model"] == "llama3.2"


SAMPLING = [
    ({"temperature": 0.5}, {"temperature": 0.5}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"top_k": 40}, {"top_k": 40}),
    ({"min_p": 0.05}, {"min_p": 0.05}),
    ({"seed": 7}, {"seed": 7}),
    ({"stop": "END"}, {"stop": ["END"]}),
    ({"stop": ["A", "B"]}, {"stop": ["A", "B"]}),
    ({"max_tokens": 9}, {"num_predict": 9}),
    ({"max_completion_tokens": 9}, {"num_predict": 9}),
    ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"presence_penalty": 0.3}, {"presence_penalty": 0.3}),
    ({"frequency_penalty": 0.4}, {"frequency_penalty": 0.4}),
]


@pytest.mark.parametrize(("fields", "options"), SAMPLING, ids=lambda each: next(iter(each)))
async def test_a_sampling_parameter_is_carried(site: Site, fields: Any, options: Any) -> None:
    async with site() as client:
        reply = await client.chat(**fields)
        assert client.fake.asked["options"] == options
        assert "x-headrace-dropped" not in reply.headers


async def test_what_the_backend_says_is_sent_with_every_chat(site: Site) -> None:
    options = {"num_ctx": 8192, "keep_alive": "10m", "parameters": {"num_gpu": 1, "temperature": 0.2}}
    async with site(options=options) as client:
        await client.chat(temperature=0.9)
        assert client.fake.asked["options"] == {"num_gpu": 1, "temperature": 0.9, "num_ctx": 8192}
        assert client.fake.asked["keep_alive"] == "10m"


async def test_messages_that_are_too_long_may_be_shortened_if_the_backend_says_so(site: Site) -> None:
    async with site(options={"shorten": True}) as client:
        await client.chat()
        assert not {"truncate", "shift"} & client.fake.asked.keys()


ROLES = [
    ({"role": "system", "content": "be kind"}, {"role": "system", "content": "be kind"}),
    ({"role": "developer", "content": "be kind"}, {"role": "system", "content": "be kind"}),
    ({"role": "user", "content": [text("a"), text("b")]}, {"role": "user", "content": "a\nb"}),
    ({"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "yes"}),
    ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "no"},
    ),
    (
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "assistant", "content": "yes", "thinking": "hm"},
    ),
]


@pytest.mark.parametrize(("given", "asked"), ROLES, ids=str)
async def test_a_message_is_carried(site: Site, given: Any, asked: Any) -> None:
    async with site() as client:
        await client.chat(messages=[given, {"role": "user", "content": "hi"}])
        assert client.fake.asked["messages"][0] == asked


async def test_pictures_are_carried_without_what_stands_before_them(site: Site) -> None:
    async with site(model="llava") as client:
        await client.answer(messages=[{"role": "user", "content": [picture(), text("what is this?")]}])
        assert client.fake.asked["messages"] == [{"role": "user", "content": "what is this?", "images": [PIXEL]}]


async def test_a_picture_behind_text_stays_behind_it(site: Site) -> None:
    async with site(model="llava") as client:
        content = [text("first"), picture(), text("second"), picture(), picture()]
        await client.answer(messages=[{"role": "user", "content": content}])
        assert client.fake.asked["messages"] == [
            {"role": "user", "content": "first"},
            {"role": "user", "content": "second", "images": [PIXEL]},
            {"role": "user", "content": "", "images": [PIXEL, PIXEL]},
        ]


@pytest.mark.parametrize("url", ["https://example.com/a.png", "ftp://x", "/etc/passwd", "data:image/png,raw"])
async def test_a_picture_that_is_not_in_the_request_is_refused(site: Site, url: str) -> None:
    async with site(model="llava") as client:
        reply = await client.chat(messages=[{"role": "user", "content": [text("see"), picture(url)]}])
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "unsupported_content")
        assert error["param"] == "messages[0].content[1].image_url"
        assert client.fake.requests == []


async def test_sounds_are_refused(site: Site) -> None:
    async with site() as client:
        sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
        reply = await client.chat(messages=[{"role": "user", "content": [sound]}])
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages[0].content[0]")


FORMATS = [
    ({"type": "text"}, None),
    ({"type": "json_object"}, "json"),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": True}},
        {"type": "array"},
    ),
]


@pytest.mark.parametrize(("given", "asked"), FORMATS, ids=lambda each: str(each)[:30])
async def test_a_response_format_is_carried(site: Site, given: Any, asked: Any) -> None:
    async with site() as client:
        await client.answer(response_format=given)
        assert client.fake.asked.get("format") == asked


async def test_tools_are_carried(site: Site) -> None:
    async with site() as client:
        await client.answer(tools=[WEATHER, {"type": "function", "function": {"name": "now"}}])
        empty = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
        assert client.fake.asked["tools"] == [WEATHER, empty]


async def test_a_tool_call_is_answered_with_an_id_and_its_arguments_as_text(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"tool_calls": [CALL]}]
        choice = await client.answer(tools=[WEATHER])
        (call,) = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
        assert json.loads(call["function"]["arguments"]) == {"city": "Köln", "days": 2}
        assert call["id"].startswith("call_")
        assert len(call["id"]) <= 40


@pytest.mark.parametrize(("given", "told"), [('{"a":1}', '{"a":1}'), (None, "{}")], ids=["text", "none"])
async def test_arguments_that_are_no_object_stay_what_they_are(site: Site, given: Any, told: str) -> None:
    async with site() as client:
        client.fake.say = [{"tool_calls": [{"function": {"name": "f", "arguments": given}}]}]
        (call,) = (await client.answer(tools=[WEATHER]))["message"]["tool_calls"]
        assert call["function"]["arguments"] == told


async def test_parallel_tool_calls_have_ids_of_their_own(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"tool_calls": [CALL, CALL]}, {"tool_calls": [CALL]}]
        calls = (await client.answer(tools=[WEATHER]))["message"]["tool_calls"]
        again = (await client.answer(tools=[WEATHER]))["message"]["tool_calls"]
        assert len({call["id"] for call in (*calls, *again)}) == 6


async def test_an_id_that_ollama_gives_is_kept_unless_it_was_given_before(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"tool_calls": [{"id": "call_x", **CALL}, {"id": "call_x", **CALL}]}]
        first, second = (await client.answer(tools=[WEATHER]))["message"]["tool_calls"]
        assert first["id"] == "call_x"
        assert second["id"] not in ("", "call_x")


async def test_the_result_of_a_tool_is_told_with_the_tools_name(site: Site) -> None:
    async with site() as client:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        await client.answer(messages=messages)
        assert client.fake.asked["messages"][1:] == [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}, "id": "c1"}],
            },
            {"role": "tool", "content": "rain", "tool_name": "weather", "tool_call_id": "c1"},
        ]


@pytest.mark.parametrize("arguments", ["[1]", "{", '"text"', "nonsense"])
async def test_arguments_that_are_no_object_are_refused_with_their_place(site: Site, arguments: str) -> None:
    async with site() as client:
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        reply = await client.chat(messages=[{"role": "assistant", "tool_calls": [call]}])
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "messages[0].tool_calls[0].function.arguments"


async def test_without_a_choice_of_tools_there_are_none(site: Site) -> None:
    async with site() as client:
        reply = await client.chat(tools=[WEATHER], tool_choice="none")
        assert "tools" not in client.fake.asked
        assert "x-headrace-dropped" not in reply.headers


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
async def test_a_call_that_must_be_made_is_refused(site: Site, choice: Any) -> None:
    async with site() as client:
        reply = await client.chat(tools=[WEATHER], tool_choice=choice)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")


async def test_a_call_that_must_be_made_may_be_a_wish_if_the_backend_says_so(site: Site) -> None:
    async with site(options={"ignore": ["tool_choice"]}) as client:
        reply = await client.chat(tools=[WEATHER], tool_choice="required")
        assert (reply.status_code, reply.headers["x-headrace-dropped"]) == (200, "tool_choice")
