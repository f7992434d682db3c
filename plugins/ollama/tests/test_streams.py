"""Streams: lines of JSON become events, wherever they were cut, and an answer that was cut never looks whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import UpstreamError
from headrace_ollama.answering import ChatTranslation
from headrace_ollama.stream import LONGEST, Lines

Site = Callable[..., Any]
CALL = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
LOGPROB = {"token": "Hel", "logprob": -0.1, "top_logprobs": [{"token": "Hel", "logprob": -0.1, "bytes": [72]}]}

STREAM = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def decoded(text: str) -> list[Any]:
    return [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n") if block]


def joined(events: list[Any], name: str = "content") -> str:
    return "".join(event["choices"][0]["delta"].get(name) or "" for event in events if event["choices"])


def finishes(events: list[Any]) -> list[str]:
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    return [reason for reason in reasons if reason]


async def test_a_stream_ends_with_its_finish_reason_and_the_end_marker(site: Site) -> None:
    async with site() as client:
        *events, done = await client.events()
        assert client.fake.asked["stream"] is True
    assert done == "[DONE]"
    assert (joined(events), finishes(events)) == ("Hello!", ["stop"])
    assert [event["choices"][0]["delta"].get("role") for event in events] == ["assistant", None, None, None]
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


async def test_lines_may_come_in_pieces(site: Site) -> None:
    async with site() as client:
        client.fake.cut_lines = True
        *events, done = await client.events()
    assert (joined(events), done) == ("Hello!", "[DONE]")


async def test_token_counts_come_last_where_they_are_asked_for(site: Site) -> None:
    async with site() as client:
        client.fake.counts["prompt_eval_cached_count"] = 20
        *events, last, done = await client.events(stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 26,
        "completion_tokens": 3,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 20},
        "completion_tokens_details": None,
    }
    assert not any(event.get("usage") for event in events)


async def test_token_counts_are_not_shown_to_a_client_that_did_not_ask(site: Site) -> None:
    async with site() as client:
        assert not any(event.get("usage") for event in (await client.events())[:-1])


async def test_plugins_learn_the_token_counts_of_a_client_that_did_not_ask(site: Site, counting: Any) -> None:
    async with site(plugins={"counting": counting}) as client:
        *events, done = await client.events()
    assert (joined(events), done) == ("Hello!", "[DONE]")
    assert not any(event.get("usage") for event in events)
    (usage,) = counting.counted
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (26, 3, False)


async def test_tool_calls_are_streamed_with_an_index_and_an_id_each(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"content": "let me see"}, {"tool_calls": [CALL]}, {"tool_calls": [CALL]}]
        *events, _ = await client.events()
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    assert len({call["id"] for call in calls}) == 2
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Köln"}] * 2
    assert finishes(events) == ["tool_calls"]


async def test_thoughts_are_streamed_apart_from_the_answer(site: Site) -> None:
    async with site(model="qwen3:8b") as client:
        client.fake.say = [{"thinking": "hm"}, {"thinking": "m"}, {"content": "yes"}]
        *events, _ = await client.events()
    assert (joined(events, "reasoning_content"), joined(events)) == ("hmm", "yes")


async def test_log_probabilities_are_streamed_even_with_tokens_that_show_nothing(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"content": "", "logprobs": [LOGPROB]}, {"content": "Hello", "logprobs": [LOGPROB]}]
        *events, _ = await client.events(logprobs=True, top_logprobs=1)
        assert (client.fake.asked["logprobs"], client.fake.asked["top_logprobs"]) == (True, 1)
    tokens = [event["choices"][0]["logprobs"]["content"] for event in events if event["choices"][0]["logprobs"]]
    expected = {
        "token": "Hel",
        "logprob": -0.1,
        "bytes": [72, 101, 108],
        "top_logprobs": [{"token": "Hel", "logprob": -0.1, "bytes": [72]}],
    }
    assert tokens == [[expected], [expected]]


async def test_an_answer_that_became_too_long_says_so(site: Site) -> None:
    async with site() as client:
        client.fake.reason = "length"
        assert finishes((await client.events())[:-1]) == ["length"]


async def test_an_older_ollama_says_no_reason(site: Site) -> None:
    async with site() as client:
        client.fake.reason = None
        assert finishes((await client.events())[:-1]) == ["stop"]


@pytest.mark.parametrize("last", ["cut", "error", "end"])
async def test_a_stream_that_breaks_ends_with_an_error_and_without_the_end_marker(
    site: Site, kit: Any, last: str
) -> None:
    broken = {
        "cut": [kit.CUT],
        "error": [{"content": "lo"}, {"error": "the model has crashed"}],
        "end": [{"error": ""}],
    }
    async with site() as client:
        client.fake.say = [{"content": "Hel"}, kit.PAUSE, *broken[last]]
        text = ""
        async with client.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
            async for part in reply.aiter_text():
                text += part
                client.fake.go.set()
    *events, end = decoded(text)
    assert joined(events) == {"error": "Hello"}.get(last, "Hel")
    assert end["error"]["code"] == "stream_truncated"


async def test_a_stream_that_fails_before_its_first_token_is_answered_by_the_next_backend(site: Site, kit: Any) -> None:
    async with kit.FakeOllama() as spare:
        tables = {
            "models": {"m": {"targets": ["gpu", {"provider": "ollama", "base_url": spare.url, "model": "llama3.2"}]}}
        }
        async with site(tables=tables) as client:
            client.fake.say = [{"content": ""}, {"error": "the runner has died"}]
            *events, done = await client.events()
    assert (joined(events), done) == ("Hello!", "[DONE]")


async def test_a_client_that_leaves_stops_its_request_at_ollama(site: Site, kit: Any) -> None:
    async with site() as client:
        client.fake.say = [{"content": "Hel"}, kit.SILENCE]
        async with client.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
            assert "Hel" in await anext(reply.aiter_text())
        await asyncio.wait_for(client.fake.left.wait(), 10)


async def test_a_backend_that_sends_no_token_in_time_is_given_up(site: Site, kit: Any) -> None:
    async with site(timeouts={"first_token": 0.3}) as client:
        client.fake.say = [{"content": ""}, kit.SILENCE]
        reply = await client.chat(stream=True)
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "upstream_timeout")
        await asyncio.wait_for(client.fake.left.wait(), 10)


async def test_a_first_token_in_time_is_all_that_is_asked(site: Site) -> None:
    async with site(timeouts={"first_token": 20}) as client:
        *events, done = await client.events()
    assert (joined(events), done) == ("Hello!", "[DONE]")


async def test_a_connection_is_used_again_after_a_stream(site: Site) -> None:
    async with site() as client:
        for _ in range(3):
            await client.events()
        assert client.fake.connections == 1


async def test_a_broken_stream_is_begun_anew_and_goes_on_where_it_broke(site: Site, kit: Any) -> None:
    async with kit.FakeOllama() as spare:
        targets = ["gpu", {"provider": "ollama", "base_url": spare.url, "model": "llama3.2"}]
        async with site(tables={"models": {"m": {"targets": targets, "midstream": "resume"}}}) as client:
            client.fake.say = [{"content": "Hel"}, kit.CUT]
            *events, done = await client.events(temperature=0)
            assert len(spare.requests) == 1
    assert (joined(events), done) == ("Hello!", "[DONE]")


async def test_a_backend_that_can_goes_on_with_what_was_said(site: Site, kit: Any) -> None:
    async with kit.FakeOllama() as spare:
        spare.say = [{"content": "lo!"}]
        targets = ["gpu", {"provider": "ollama", "base_url": spare.url, "model": "llama3.2", "prefill": True}]
        async with site(tables={"models": {"m": {"targets": targets, "midstream": "resume"}}}) as client:
            client.fake.say = [{"content": "Hel"}, kit.CUT]
            *events, done = await client.events(max_tokens=10)
            assert spare.asked["messages"][-1] == {"role": "assistant", "content": "Hel"}
            assert spare.asked["options"]["num_predict"] == 9
    assert (joined(events), done) == ("Hello!", "[DONE]")


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    lines = Lines()
    with pytest.raises(UpstreamError, match="more than"):
        for _ in range(2 * LONGEST // 65_536):
            lines.feed(b"x" * 65_536)


def test_a_line_costs_few_microseconds() -> None:
    message = {"role": "assistant", "content": " word"}
    said = {"model": "llama3.2", "created_at": "2025-11-21T22:30:14.123456Z", "message": message, "done": False}
    line = json.dumps(said).encode()
    translation, count = ChatTranslation("r"), 20_000
    started = time.perf_counter()
    for _ in range(count):
        translation.feed(line)
    cost = (time.perf_counter() - started) / count * 1e6
    print(f"{cost:.1f} µs a line")
    assert cost < 200
