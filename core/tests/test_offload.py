"""One request that nginx delivers, from its arrival to its end: for plugins it is as if the core had delivered it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from headrace import hookimpl
from headrace.exchange import Outcome, Usage
from headrace.testing import CHUNK, COMPLETION, DONE, FINISH, FakeBackend

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}
A, B = "a" * 32, "b" * 32
COUNTS = '"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":8}}'

ARRIVAL = [
    *("authenticate", "authorize", "transform_request", "admit in", "open_tap", "cache_lookup"),
    "prepare_attempt",
]
SETTLED = ["on_attempt", "on_complete"]
WHOLE = [*ARRIVAL, "tap fed", "tap closed True", "admit out", *SETTLED]
CUT = [*ARRIVAL, "tap fed", "tap closed False", "admit out", "handle_error", *SETTLED]

Fronted = Callable[..., Any]
Seen = Callable[..., dict[str, Any]]


def document(backend: FakeBackend, **tables: Any) -> dict[str, Any]:
    server = {"anonymous": True, **tables.pop("server", {})}
    return {**backend.config(**tables), "server": server}


def described(outcome: Outcome) -> dict[str, Any]:
    """What an outcome says that is the same in both deliveries."""
    found = msgspec.structs.asdict(outcome)
    error = found.pop("error")
    for name in ("delivery", "delivery_reason", "ttft_seconds", "duration_seconds"):
        del found[name]
    return {**found, "error": error and (error.code, error.status, error.message)}


@pytest.mark.parametrize(
    ("body", "backend_does", "nginx_says", "calls"),
    [
        (CHAT, {}, {"events": 1, "usage": COUNTS % 1}, WHOLE),
        (STREAM, {}, {"events": 5, "usage": COUNTS % 3}, WHOLE),
        (COUNTED, {}, {"events": 6, "usage": COUNTS % 3}, WHOLE),
        (STREAM, {"cut_after": 2}, {"events": 2, "cut": True, "unfinished": True}, CUT),
        (STREAM, {"cut_after": 1}, {"events": 1, "cut": True}, CUT),
        (CHAT, {"status": 400}, {"events": 1}, [each for each in WHOLE if each != "tap fed"]),
        (STREAM, {"status": 422}, {"events": 1}, [each for each in WHOLE if each != "tap fed"]),
    ],
    ids=[
        "whole",
        "stream",
        "stream with usage",
        "cut",
        "cut early",
        "error of the caller",
        "error instead of a stream",
    ],
)
async def test_plugins_see_the_same_in_both_deliveries(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen, body: Any, backend_does: Any, nginx_says: Any,
    calls: list[str],
) -> None:  # fmt: skip
    for name, value in backend_does.items():
        setattr(backend, name, value)
    async with fronted(document(backend, server={"delivery": "inline"}), {"r": recorder}) as nginx:
        inline = await nginx.ask(body)
        outcome = await recorder.outcome()
        assert (recorder.calls, outcome.delivery) == (calls, "inline")
        recorder.calls.clear()
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(body)
        await nginx.report(status=inline.status_code, bytes=1, watched=[seen(size=len(inline.content), **nginx_says)])
        offloaded = await recorder.outcome()
    assert (recorder.calls, offloaded.delivery) == (calls, "offload")
    assert described(offloaded) == described(outcome)
    assert described(recorder.attempts[1]) == described(recorder.attempts[0])
    if outcome.usage is not None:
        assert recorder.usages == [outcome.usage] * 2


async def test_usage_that_the_client_did_not_ask_for_is_read_and_not_shown(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend, server={"delivery": "inline"}), {"r": recorder}) as nginx:
        response = await nginx.ask(STREAM)
        assert (await recorder.outcome()).usage == Usage(5, 3)
    assert response.content == b"".join(CHUNK % number for number in range(3)) + FINISH + DONE


async def test_nothing_that_is_held_is_let_go_before_the_report(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.heard()
        assert recorder.calls == ARRIVAL
        await nginx.report()
        await recorder.outcome()
    assert recorder.calls == [each for each in WHOLE if each != "tap fed"]


async def test_the_body_is_let_go_of_but_its_size_is_known(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    body = {**STREAM, "user": "x" * 4000}
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(body)
        await nginx.report(watched=[seen(7, cut=True)])
        outcome = await recorder.outcome()
    assert outcome.usage == Usage(len(msgspec.json.encode(body)) // 4, 7, estimated=True)


# --- What the report says ---


@pytest.mark.parametrize(
    ("said", "code", "aborted", "status"),
    [
        ({"watched": [{"unfinished": True}]}, "stream_truncated", False, 200),
        ({"watched": [{"cut": True}]}, "stream_truncated", False, 200),
        ({"watched": [{"cut": True}], "completed": False}, "stream_truncated", False, 200),
        ({"completed": False}, None, True, 200),
        ({"completed": False, "status": 499}, None, True, 499),
        ({"status": 0}, "stream_truncated", False, 502),
        ({"status": 9}, "stream_truncated", False, 502),
    ],
)
async def test_an_answer_that_was_not_delivered_whole_is_not_complete(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen, said: Any, code: Any, aborted: bool, status: int
) -> None:
    report = {**said, "watched": [seen(**each) for each in said.get("watched", ())]}
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(STREAM)
        await nginx.report(**report)
        outcome = await recorder.outcome()
    assert (outcome.completed, outcome.aborted, outcome.status) == (False, aborted, status)
    assert (outcome.error and outcome.error.code) == code
    assert recorder.calls.count("on_attempt") == recorder.calls.count("tap closed False") == 1
    assert (recorder.attempts[0].completed, recorder.attempts[0].aborted) == (False, aborted)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (COUNTS % 9, Usage(5, 9)),
        (
            '"usage":{"prompt_tokens":5,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":4}}',
            Usage(5, 9, 4, tells_cached=True),
        ),
        ("", Usage(23, 40, estimated=True)),
        ('"usage":null}', Usage(23, 40, estimated=True)),
        ('"usage":{"prompt_tokens":', Usage(23, 40, estimated=True)),
    ],
)
async def test_tokens_are_counted_by_the_backend_or_else_estimated(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen, usage: str, expected: Usage
) -> None:
    body = msgspec.json.encode(STREAM) + b" " * 15
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(body)
        await nginx.report(watched=[seen(40, usage=usage)])
        outcome = await recorder.outcome()
    assert msgspec.structs.replace(expected, prompt_tokens=len(body) // 4 if expected.estimated else 5) == outcome.usage


async def test_nothing_is_estimated_for_a_whole_answer_that_tells_no_usage(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.report(watched=[seen(3)])
        assert (await recorder.outcome()).usage is None
    assert "tap fed" not in recorder.calls


async def test_nothing_is_estimated_for_a_whole_stream_of_which_nobody_counts_the_tokens(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    class Indifferent(recorder):  # type: ignore[misc]
        @hookimpl
        def open_tap(self) -> None: ...

    async with fronted(document(backend), {"r": Indifferent}) as nginx:
        await nginx.ask(STREAM)
        await nginx.report(watched=[seen(7)])
        assert (await recorder.outcome()).usage is None
        await nginx.ask(STREAM)
        await nginx.report(watched=[seen(7, cut=True)])
        assert (await recorder.outcome()).usage.completion_tokens == 7


async def test_a_reply_that_was_not_watched_to_its_end_is_reckoned_by_its_size(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(STREAM)
        await nginx.report(bytes=3000, watched=[seen(100, 1000, COUNTS % 9, whole=False)])
        outcome = await recorder.outcome()
    assert (outcome.completed, outcome.bytes_sent) == (True, 3000)
    assert (outcome.usage.completion_tokens, outcome.usage.estimated) == (300, True)


async def test_the_first_byte_of_an_answer_is_when_its_head_came(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        for number, header_time in enumerate(("2.5", "0.1, 2.5", "- : 2.5")):
            await nginx.ask(CHAT)
            await nginx.report(header_time=header_time)
            outcome = await recorder.outcome()
            assert 2.5 < outcome.ttft_seconds < 2.5 + outcome.duration_seconds, header_time
            assert 2.5 <= recorder.attempts[number].ttft_seconds <= outcome.ttft_seconds


async def test_the_first_byte_of_a_watched_answer_is_its_first_piece(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        before = time.time()
        await nginx.ask(STREAM)
        await nginx.report(watched=[seen(first=(before + 5.0) * 1000)])
        outcome = await recorder.outcome()
    assert 5.0 - 0.1 < outcome.ttft_seconds < 5.0 + 0.1


async def test_an_answer_without_a_head_has_no_first_byte(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        for header_time in ("-", "", "0.1, -"):
            await nginx.ask(CHAT)
            await nginx.report(header_time=header_time, completed=False, status=499)
            assert (await recorder.outcome()).ttft_seconds is None, header_time


# --- What goes wrong around it ---


async def test_a_lost_report_ends_the_request_and_settles_it_at_the_most_it_can_have_cost(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    body = {**STREAM, "max_tokens": 50}
    models = {"test": {"targets": ["fake", {"provider": "openai", "base_url": "http://127.0.0.1:9"}]}}
    async with fronted(document(backend, server={"report_timeout": 0.1}, models=models), {"r": recorder}) as nginx:
        await nginx.ask(body)
        outcome = await recorder.outcome()
    ended = ["on_attempt", "admit out", "handle_error", "tap fed", "tap closed False", "on_complete"]
    assert recorder.calls == [*ARRIVAL, *ended]  # and no other backend is asked
    assert (outcome.status, outcome.error.code, outcome.attempts) == (502, "report_lost", 1)
    assert outcome.usage == Usage(len(msgspec.json.encode(body)) // 4, 50, estimated=True)
    assert recorder.attempts[0].error is outcome.error
    assert [each for each in caplog.records if each.name.startswith("uvicorn")] == []  # nobody is there to be answered


async def test_two_requests_with_one_request_id_are_kept_apart(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        for exchange in (A, B):
            await nginx.ask(CHAT, exchange, headers={"x-request-id": "the-same"})
        await nginx.report(B, bytes=2)
        assert (await recorder.outcome()).bytes_sent == 2
        assert recorder.calls.count("admit out") == 1
        await nginx.report(A, bytes=1)
        assert (await recorder.outcome()).bytes_sent == 1
    assert [each.id for each in recorder.exchanges] == ["the-same", "the-same"]


async def test_the_connection_that_carried_the_redirect_does_not_matter_any_more(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.client.aclose()
        await nginx.heard()
        assert recorder.is_told_no_more()
        await nginx.report()
        assert (await recorder.outcome()).completed


async def test_a_client_that_leaves_while_the_core_decides_is_not_handed_over(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    deciding = asyncio.Event()

    class Slow:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def prepare_attempt(self) -> None:
            deciding.set()
            await asyncio.Event().wait()

    async with fronted(document(backend), {"r": recorder, "slow": Slow}) as nginx:
        asking = asyncio.create_task(nginx.ask(CHAT))
        await asyncio.wait_for(deciding.wait(), 10)
        asking.cancel()
        outcome = await recorder.outcome()
        assert len(nginx.gateway.reporting) == 0
    assert (outcome.status, outcome.aborted, outcome.attempts) == (499, True, 1)
    assert recorder.calls == [*ARRIVAL, "admit out", "tap closed False", *SETTLED]


async def test_the_end_of_the_gateway_ends_what_nginx_has_before_plugins_are_closed(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    class Closing(recorder):  # type: ignore[misc]
        @hookimpl
        @contextlib.asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            yield
            self.calls.append("closed")

    async with fronted(document(backend, server={"shutdown_timeout": 0.5}), {"r": Closing}) as nginx:
        await nginx.ask(STREAM)
        nginx.has.clear()
    ended = ["admit out", "handle_error", "tap closed False", *SETTLED, "closed"]
    assert recorder.calls == [*ARRIVAL, *ended]
    outcome = await recorder.outcome()
    assert (outcome.status, outcome.completed, outcome.error.code) == (503, False, "shutting_down")


async def test_the_gateway_waits_for_the_reports_of_what_nginx_has(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async def report_once_it_stops(path: str, address: str, report: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, writer = await asyncio.open_unix_connection(path)
                writer.close()
                await asyncio.sleep(0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(report, address)

    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        nginx.has.clear()
        said = {"id": A, "mark": nginx.mark, "connection": 1, "status": 200, "bytes": 5, "completed": True}
        report = b"<190>Nov 21 10:00:00 headrace: " + msgspec.json.encode(said)
        reporting = asyncio.create_task(report_once_it_stops(str(nginx.gateway.core_socket), nginx.address, report))
    await reporting
    outcome = await recorder.outcome()
    assert (outcome.completed, outcome.bytes_sent) == (True, 5)


async def test_a_size_that_nginx_counted_with_the_head_is_not_that_of_the_body(
    fronted: Fronted, recorder: Any, backend: FakeBackend, seen: Seen
) -> None:
    async with fronted(document(backend), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.report(bytes=999, watched=[seen(size=len(COMPLETION))])
        assert (await recorder.outcome()).bytes_sent == len(COMPLETION)
