"""Backends of other providers that speak Anthropic's API beside OpenAI's, vLLM or llama.cpp for instance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Outcome

START = {
    "type": "message_start",
    "message": {"id": "m", "content": [], "usage": {"input_tokens": 21, "output_tokens": 0}},
}
BEGIN = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}}
LAST = [
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 300},
    },
    {"type": "message_stop"},
]


class Seen:
    """Wants the token counts of every answer, and keeps what it is told of each."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        exchange.usage_wanted = True

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcomes.put_nowait(outcome)


@pytest.fixture
async def site(site_with: Any, kit: Any) -> AsyncIterator[Any]:
    async with kit.Backend() as backend:
        both = {"provider": "openai", "base_url": backend.root, "endpoints": ["chat", "messages"]}
        async with site_with(
            {}, backends={"both": both}, models={"chat": {"targets": ["both"]}}, plugin_classes={"seen": Seen}
        ) as made:
            yield made._replace(chat=backend)


async def outcome_of(site: Any) -> Outcome:
    plugin: Any = site.running.gateway.plugins["seen"]
    outcome: Outcome = await asyncio.wait_for(plugin.outcomes.get(), 20)
    return outcome


async def test_they_are_asked_messages(site: Any) -> None:
    site.chat.body = {"type": "message", "content": [], "usage": {"input_tokens": 4, "output_tokens": 2}}
    answer = await site.messages(top_k=5, cache_control={"type": "ephemeral"})
    assert (site.chat.last.path, answer.json()) == ("/v1/messages", site.chat.body)
    assert site.chat.last.body["cache_control"] == {"type": "ephemeral"}
    usage = (await outcome_of(site)).usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (4, 2)


async def test_they_are_not_asked_for_usage_as_a_chat_is(site: Any, kit: Any) -> None:
    site.chat.stream(*kit.sse(START, BEGIN, DELTA, *LAST))
    await site.messages(stream=True)
    assert "stream_options" not in site.chat.last.body


async def test_tokens_of_a_long_stream_are_counted_from_its_start_and_its_end(site: Any, kit: Any) -> None:
    site.chat.stream(*kit.sse(START, BEGIN, *[DELTA] * 300, *LAST))
    answer = await site.messages(stream=True)
    assert len(answer.content) > 30_000
    outcome = await outcome_of(site)
    assert outcome.completed
    usage = outcome.usage
    assert usage is not None and not usage.estimated
    assert (usage.prompt_tokens, usage.completion_tokens) == (21, 300)


async def test_tokens_of_a_stream_that_breaks_are_estimated(site: Any, kit: Any) -> None:
    site.chat.cut = True
    site.chat.stream(*kit.sse(START, BEGIN, *[DELTA] * 30))
    await site.messages(stream=True)
    outcome = await outcome_of(site)
    assert not outcome.completed
    assert outcome.usage is not None and outcome.usage.estimated
    assert outcome.usage.completion_tokens >= 30


async def test_a_picture_is_not_counted_as_text(site: Any, kit: Any) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}}
    exchange = kit.an_exchange(messages=[{"role": "user", "content": [picture]}])
    assert exchange.text_bytes < 1000
    assert exchange.pictures == 1
