"""Streams that break and are gone on with: one answer, without seams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace.journal import Journal, Mismatch
from headrace.streaming import EventSplitter
from headrace.testing import FakeBackend, serve
from headrace.vetting import BadEvent

ASKED = {"model": "test", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
WORDS = ["t0 ", "t1 ", "t2 ", "t3 ", "t4 ", "t5 "]


class Backend(FakeBackend):
    """Says t0 to t5, with a role before and token counts after; goes on where it is told to, or is cut."""

    def __init__(self, name: str, *, cut: int | None = None, aborts: bool = False, other: bool = False) -> None:
        super().__init__()
        self.name, self.cut, self.aborts, self.other = name, cut, aborts, other

    async def _stream(self, writer: asyncio.StreamWriter, fields: Any) -> bool:
        last = fields["messages"][-1]
        said = last["content"] if fields.get("continue_final_message") and last["role"] == "assistant" else ""
        words = ["other "] * 6 if self.other else WORDS[len(said.split()) :]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        writer.write(self._event({"role": "assistant", "content": ""}))
        for number, word in enumerate(words):
            if number == self.cut:
                if self.aborts:
                    writer.write(self._event({"content": ""}, finish="abort") + b"data: [DONE]\n\n")
                await writer.drain()
                return False
            writer.write(self._event({"content": word}))
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(self._event({}, finish="stop"))
        usage = {"prompt_tokens": 10 + len(said.split()), "completion_tokens": len(words)}
        writer.write(b"data: %s\n\ndata: [DONE]\n\n" % msgspec.json.encode({"choices": [], "usage": usage}))
        await writer.drain()
        return False

    def _event(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: %s\n\n" % msgspec.json.encode({"id": self.name, "created": 1, "choices": [choice]})


@contextlib.asynccontextmanager
async def gateway(*backends: FakeBackend, prefill: bool = True, **model: Any) -> AsyncIterator[SimpleNamespace]:
    async with contextlib.AsyncExitStack() as stack:
        for each in backends:
            await stack.enter_async_context(each)
        config = backends[0].config()
        names = [f"b{number}" for number in range(len(backends))]
        config["backends"] = {
            name: {"provider": "openai", "base_url": each.url, "prefill": prefill}
            for name, each in zip(names, backends, strict=True)
        }
        retry = {"backoff": 0.01, **model.pop("retry", {})}
        config["models"] = {"test": {"targets": names, "midstream": "resume", "retry": retry, **model}}
        running = await stack.enter_async_context(serve(config))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))

        async def chat(**fields: Any) -> list[Any]:
            answer = await client.post("/v1/chat/completions", json={**ASKED, **fields})
            return [each.data if each.is_done else each.json() for each in EventSplitter().feed(answer.content)]

        yield SimpleNamespace(chat=chat)


def text_of(events: list[Any]) -> str:
    choices = [choice for each in events if isinstance(each, dict) for choice in each.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("aborts", [False, True], ids=["breaks", "aborts"])
async def test_another_backend_goes_on_and_the_answer_is_one(aborts: bool) -> None:
    first, second = Backend("first", cut=3, aborts=aborts), Backend("second")
    async with gateway(first, second) as it:
        *events, done = await it.chat()
    assert (text_of(events), done) == ("".join(WORDS), b"[DONE]")
    assert {each["id"] for each in events if each["choices"]} == {"first"}
    deltas = [choice["delta"] for each in events for choice in each["choices"]]
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    assert msgspec.json.decode(second.requests[0][2])["messages"][-1] == {"role": "assistant", "content": "t0 t1 t2 "}


async def test_the_counts_are_those_of_the_whole_answer() -> None:
    async with gateway(Backend("first", cut=2), Backend("second")) as it:
        events = await it.chat(stream_options={"include_usage": True})
    assert events[-2]["usage"] == {"prompt_tokens": 10, "completion_tokens": 6}


async def test_usage_that_nobody_asked_for_is_not_shown_whoever_goes_on() -> None:
    async with gateway(Backend("first", cut=2), Backend("second")) as it:
        events = await it.chat()
    assert all(each["choices"] for each in events[:-1])
    assert events[-1] == b"[DONE]"


async def test_a_stream_may_break_again_and_again() -> None:
    async with gateway(Backend("a", cut=2), Backend("b", cut=1), Backend("c", cut=2), Backend("d")) as it:
        assert text_of(await it.chat()) == "".join(WORDS)


async def test_what_must_come_out_the_same_is_begun_anew_where_nobody_can_go_on() -> None:
    second = Backend("second")
    async with gateway(Backend("first", cut=3), second, prefill=False) as it:
        events = await it.chat(temperature=0)
    assert (text_of(events), events[-1]) == ("".join(WORDS), b"[DONE]")
    assert len(msgspec.json.decode(second.requests[0][2])["messages"]) == 1


@pytest.mark.parametrize("asked", [{"temperature": 0}, {}])
async def test_an_answer_that_comes_out_differently_ends_with_an_error(asked: dict[str, Any]) -> None:
    second = Backend("second", other=True)
    async with gateway(Backend("first", cut=3), second, prefill=False, retry={"rounds": 1}) as it:
        events = await it.chat(**asked)
    assert (text_of(events), events[-1]["error"]["code"]) == ("t0 t1 t2 ", "stream_truncated")
    assert len(second.requests) == (1 if asked else 0)  # what is left to chance is not even asked for


async def test_an_answer_with_a_form_is_never_begun_in_its_middle() -> None:
    second = Backend("second")
    async with gateway(Backend("first", cut=3), second) as it:
        events = await it.chat(response_format={"type": "json_object"})
    assert events[-1]["error"]["code"] == "stream_truncated"
    assert second.requests == []


async def test_a_backend_that_refuses_to_go_on_is_passed_over() -> None:
    refusing = Backend("second")
    refusing.status = 400
    async with gateway(Backend("first", cut=3), refusing, Backend("third")) as it:
        assert text_of(await it.chat()) == "".join(WORDS)


async def test_the_rest_of_an_answer_is_no_longer_than_the_rest_of_its_limit() -> None:
    second = Backend("second")
    async with gateway(Backend("first", cut=3), second) as it:
        await it.chat(max_tokens=5)
    assert msgspec.json.decode(second.requests[0][2])["max_tokens"] == 2


async def test_a_stream_that_nobody_can_go_on_with_ends_soon() -> None:
    async with gateway(Backend("first", cut=3), Backend("second", cut=1), prefill=False) as it:
        async with asyncio.timeout(10):
            events = await it.chat()
    assert events[-1]["error"]["code"] == "stream_truncated"


def said(**delta: Any) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]})


class TestJournal:
    def test_a_call_of_a_tool_is_not_gone_on_with(self) -> None:
        journal = Journal()
        list(journal.feed(said(tool_calls=[{"index": 0, "function": {"name": "f"}}])))
        assert journal.fixed

    def test_text_that_is_said_again_is_left_out_wherever_it_is_cut(self) -> None:
        journal = Journal()
        shown = list(journal.feed(said(content="one two")))
        journal.follow(anew=True)
        shown += journal.feed(said(content="one ") + said(content="two th") + said(content="ree"))
        assert journal.text == "one two three"
        assert len(shown) == 3

    def test_text_that_is_not_said_again_is_noticed(self) -> None:
        journal = Journal()
        list(journal.feed(said(content="one two")))
        journal.follow(anew=True)
        with pytest.raises(Mismatch):
            list(journal.feed(said(content="one three")))

    def test_an_answer_that_ends_before_what_was_said_is_noticed(self) -> None:
        journal = Journal()
        list(journal.feed(said(content="one two")))
        journal.follow(anew=True)
        with pytest.raises(Mismatch):
            list(journal.feed(b'data: {"choices":[{"delta":{"content":"one"},"finish_reason":"stop"}]}\n\n'))

    @pytest.mark.parametrize(
        "bad",
        [
            b"data: {\n\n",
            b'data: {"error":{"message":"x"}}\n\n',
            b"data: 7\n\n",
            b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"abort"}]}\n\n',
        ],
    )
    def test_what_is_no_part_of_an_answer_breaks_the_stream(self, bad: bytes) -> None:
        with pytest.raises(BadEvent):
            list(Journal().feed(bad))


async def test_an_answer_that_the_client_has_begun_is_one_message() -> None:
    second = Backend("second")
    begun = {"role": "assistant", "content": "Well: "}
    async with gateway(Backend("first", cut=3), second) as it:
        await it.chat(messages=[{"role": "user", "content": "hi"}, begun], continue_final_message=True)
    sent = msgspec.json.decode(second.requests[0][2])
    assert sent["messages"][-1]["content"].startswith("Well: t")
    assert [each["role"] for each in sent["messages"]] == ["user", "assistant"]
