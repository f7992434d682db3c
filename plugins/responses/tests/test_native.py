"""Backends that have the Responses API themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace import hookimpl
from headrace.exchange import Exchange, Outcome, Usage


class Watching:
    """Wants the usage, and limits answers."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.outcomes: list[Outcome] = []
        gateway.watching = self

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        exchange.usage_wanted = True
        exchange.answer_limit = 50

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


async def test_an_answer_passes_as_it_is(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.response(novel={"field": 1})
    async with gateway("responses") as asker:
        answer = await asker.ask(novel="too")
    assert answer.json() == backend.reply
    assert backend.requests == [("/v1/responses", {"model": "test", "input": "hello", "novel": "too"})]
    assert "x-headrace-dropped" not in answer.headers


async def test_a_stream_passes_as_it_is(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.streamed(kit.response())
    async with gateway("responses") as asker:
        answer = await asker.ask(stream=True)
    assert answer.content == b"".join(backend.reply)


async def test_the_usage_of_an_answer_is_read_whole_or_streamed(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    async with gateway("responses", plugins={"watching": Watching}) as asker:
        backend.reply = kit.response()
        await asker.ask()
        backend.reply = kit.streamed(kit.response())
        await asker.ask(stream=True)
        outcomes = asker.gateway.watching.outcomes
    assert [outcome.usage for outcome in outcomes] == [Usage(11, 3, 4, tells_cached=True)] * 2
    assert all(outcome.completed for outcome in outcomes)


async def test_a_native_stream_is_not_asked_for_its_usage_by_a_field_that_it_does_not_have(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.streamed(kit.response())
    async with gateway("responses", plugins={"watching": Watching}) as asker:
        await asker.ask(stream=True)
    assert "stream_options" not in backend.requests[0][1]


async def test_a_limit_of_the_gateway_is_told_a_native_backend_by_the_dialects_own_name(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.response()
    async with gateway("responses", plugins={"watching": Watching}) as asker:
        await asker.ask()
    body = backend.requests[0][1]
    assert (body.get("max_output_tokens"), body.get("max_tokens")) == (50, None)


async def test_an_incomplete_stream_is_whole(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.streamed(kit.response(status="incomplete"), "response.incomplete")
    async with gateway("responses") as asker:
        answer = await asker.ask(stream=True)
    assert answer.content == b"".join(backend.reply)


async def test_a_failed_stream_ends_with_an_error(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    backend.reply = kit.streamed(kit.response(status="failed"), "response.failed")
    async with gateway("responses") as asker:
        found = await asker.events()
    assert found[-1]["type"] == "error"
    assert "response.failed" not in [each["type"] for each in found]


async def test_a_stream_that_ends_without_its_last_event_is_cut(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.streamed(kit.response())[:-1]
    async with gateway("responses") as asker:
        found = await asker.events()
    assert (found[-1]["type"], found[-1]["code"]) == ("error", "stream_truncated")


async def test_a_last_event_of_megabytes_in_many_pieces_is_an_end(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    whole = b"".join(kit.streamed(kit.response(text="x" * 2_500_000)))
    backend.reply = [whole[at : at + 60_000] for at in range(0, len(whole), 60_000)]
    async with gateway("responses", plugins={"watching": Watching}) as asker:
        answer = await asker.ask(stream=True)
        (outcome,) = asker.gateway.watching.outcomes
        kept = await asker.client.get("/v1/responses/resp_1", headers={"x-caller": "ada"})
    assert answer.content == whole
    assert (outcome.completed, outcome.usage.completion_tokens) == (True, 3)
    assert len(kept.content) > 2_500_000


async def test_a_last_event_of_megabytes_that_was_cut_is_none(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    whole = b"".join(kit.streamed(kit.response(text="x" * 2_500_000)))
    backend.reply = [whole[at : at + 60_000] for at in range(0, 2_000_000, 60_000)]
    async with gateway("responses", plugins={"watching": Watching}) as asker:
        text = (await asker.ask(stream=True)).text
        kept = await asker.client.get("/v1/responses/resp_1", headers={"x-caller": "ada"})
    assert '"code":"stream_truncated"' in text
    assert kept.status_code == 404


async def test_what_is_refused_as_a_chat_is_left_to_a_backend_that_may_know_it(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply = kit.response()
    async with gateway("responses") as asker:
        answer = await asker.ask(tools=[{"type": "web_search"}], prompt={"id": "pmpt_1"})
    assert answer.status_code == 200
    assert backend.requests[0][1]["tools"] == [{"type": "web_search"}]
