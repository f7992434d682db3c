"""The whole order: every hook call of one request, for each way in which a request can end, and what `Outcome` says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Attempt, Exchange, Outcome, Principal, Reply, Usage
from headrace.testing import FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
NOWHERE = {"provider": "openai", "base_url": "http://127.0.0.1:9"}

ARRIVAL = ["authenticate", "authorize", "transform_request", "admit", "admit in", "open_tap", "cache_lookup"]
SETTLED = ["on_attempt", "on_complete"]
UNARY = [*ARRIVAL, "prepare_attempt", "transform_reply", "tap fed", "tap closed", "admit out", *SETTLED]
STREAMED = [
    *[*ARRIVAL, "prepare_attempt", "transform_reply", "wrap_stream", "stream in"],
    *["tap fed"] * 6,  # three tokens, the finish, the usage, [DONE]
    *["stream out", "tap closed", "admit out", *SETTLED],
]


class Recorder:
    """Implements every hook of a request and notes each call."""

    calls: list[str]
    outcomes: list[Outcome]
    attempts: list[Outcome]
    done: asyncio.Event

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        self.calls.append("authenticate")
        return None

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        self.calls.append("authorize")

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        self.calls.append("transform_request")

    @hookimpl
    def admit(self, exchange: Exchange) -> Any:
        self.calls.append("admit")
        return self._held()

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        self.calls.append("admit in")
        try:
            yield
        finally:
            self.calls.append("admit out")

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        self.calls.append("cache_lookup")
        return None

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        self.calls.append("prepare_attempt")

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        self.calls.append("on_attempt")
        self.attempts.append(outcome)

    @hookimpl
    async def transform_reply(self, exchange: Exchange, reply: Reply) -> None:
        self.calls.append("transform_reply")

    @hookimpl
    def wrap_stream(self, exchange: Exchange, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.calls.append("wrap_stream")
        return self._wrapped(stream)

    async def _wrapped(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.calls.append("stream in")
        try:
            async for chunk in stream:
                yield chunk
        finally:
            self.calls.append("stream out")

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Any:
        self.calls.append("open_tap")
        return SimpleNamespace(
            wants="events",
            feed=lambda item: self.calls.append("tap fed"),
            close=lambda completed: self.calls.append("tap closed"),
        )

    @hookimpl
    async def handle_error(self, exchange: Exchange, error: Any) -> None:
        self.calls.append("handle_error")

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.calls.append("on_complete")
        self.outcomes.append(outcome)
        self.done.set()


@pytest.fixture
def recorder() -> type[Recorder]:
    class Recording(Recorder):
        calls, outcomes, attempts, done = [], [], [], asyncio.Event()

    return Recording


@contextlib.asynccontextmanager
async def running(recorder: type[Recorder], **tables: Any) -> AsyncIterator[tuple[FakeBackend, httpx.AsyncClient]]:
    async with (
        FakeBackend() as backend,
        serve(backend.config(**tables), {"recorder": recorder}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        yield backend, client


async def leave(client: httpx.AsyncClient, backend: FakeBackend, recorder: type[Recorder], body: Any) -> None:
    """Ask, leave once the backend is at work (of a stream: once the first bytes are here), wait for the end."""
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    while not backend.requests:
        await asyncio.sleep(0.005)
    asking.cancel()
    await asyncio.wait_for(recorder.done.wait(), 10)


async def leave_stream(client: httpx.AsyncClient, recorder: type[Recorder]) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        await anext(response.aiter_raw())
    await asyncio.wait_for(recorder.done.wait(), 10)


async def test_a_whole_answer(recorder: type[Recorder]) -> None:
    async with running(recorder) as (_, client):
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert recorder.calls == UNARY
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.aborted, outcome.error) == (200, True, False, None)
    assert (outcome.target, outcome.attempts, outcome.usage) == ("fake", 1, Usage(5, 1))
    assert (outcome.delivery, bool(outcome.delivery_reason)) == ("inline", True)
    assert outcome.bytes_sent == len(response.content)
    assert outcome.ttft_seconds is not None
    assert 0 < outcome.ttft_seconds <= outcome.duration_seconds < 10


async def test_a_streamed_answer(recorder: type[Recorder]) -> None:
    async with running(recorder) as (backend, client):
        backend.pause = 0.05
        response = await client.post("/v1/chat/completions", json=STREAM)
    assert recorder.calls == STREAMED
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.usage) == (200, True, Usage(5, 3))
    assert outcome.bytes_sent == len(response.content)
    assert outcome.ttft_seconds is not None
    assert 0.05 <= outcome.ttft_seconds <= outcome.duration_seconds - 0.1


async def test_a_first_target_that_fails(recorder: type[Recorder]) -> None:
    async with running(recorder, models={"test": {"targets": [NOWHERE, "fake"]}}) as (_, client):
        await client.post("/v1/chat/completions", json=CHAT)
    assert recorder.calls == [*ARRIVAL, "prepare_attempt", "on_attempt", *UNARY[len(ARRIVAL) :]]
    failed, answered = recorder.attempts
    assert (failed.target, failed.status, failed.completed, failed.attempts) == ("test-0", 503, False, 1)
    assert (answered.target, answered.status, answered.completed, answered.attempts) == ("fake", 200, True, 2)
    assert (failed.ttft_seconds, failed.bytes_sent, failed.usage) == (None, 0, None)
    (outcome,) = recorder.outcomes
    assert (outcome.target, outcome.attempts, outcome.status, outcome.error) == ("fake", 2, 200, None)


async def test_every_target_fails(recorder: type[Recorder]) -> None:
    async with running(recorder, models={"test": {"targets": [NOWHERE], "retry": {"rounds": 1}}}) as (_, client):
        response = await client.post("/v1/chat/completions", json=CHAT)
    ended = ["admit out", "handle_error", "tap closed", "on_complete"]
    assert recorder.calls == [*ARRIVAL, "prepare_attempt", "on_attempt", *ended]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.aborted, outcome.attempts) == (503, False, False, 1)
    assert (outcome.target, outcome.ttft_seconds, outcome.usage) == ("test-0", None, None)
    assert outcome.error is not None
    assert outcome.error.code == "unavailable"
    assert outcome.bytes_sent == len(response.content)


async def test_an_error_of_the_caller(recorder: type[Recorder]) -> None:
    async with running(recorder) as (_, client):
        await client.post("/v1/chat/completions", json={})
    assert recorder.calls == ["authenticate", "handle_error", "on_complete"]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.target, outcome.attempts) == (400, False, None, 0)


async def test_a_stream_that_the_backend_cuts(recorder: type[Recorder]) -> None:
    async with running(recorder) as (backend, client):
        backend.cut_after = 2
        response = await client.post("/v1/chat/completions", json=STREAM)
    assert recorder.calls == [
        *[*STREAMED[: STREAMED.index("tap fed")], "tap fed", "tap fed", "stream out", "tap closed", "admit out"],
        *["handle_error", *SETTLED],
    ]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.aborted) == (200, False, False)
    assert outcome.usage is not None
    assert (outcome.usage.completion_tokens, outcome.usage.estimated) == (2, True)  # what has passed
    assert outcome.error is not None
    assert outcome.error.code == "stream_truncated"
    assert outcome.bytes_sent == len(response.content)
    assert not recorder.attempts[0].completed


async def test_a_client_that_leaves_a_stream(recorder: type[Recorder]) -> None:
    async with running(recorder) as (backend, client):
        backend.chunks, backend.pause = 1000, 0.05
        await leave_stream(client, recorder)
    fed = recorder.calls.count("tap fed")
    assert 1 <= fed < 100
    assert recorder.calls == [
        *[*STREAMED[: STREAMED.index("tap fed")], *["tap fed"] * fed, "stream out", "tap closed", "admit out"],
        *SETTLED,
    ]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.aborted, outcome.error) == (200, False, True, None)
    assert outcome.bytes_sent > 0
    assert recorder.attempts[0].aborted


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_before_the_first_byte(recorder: type[Recorder], body: Any) -> None:
    async with running(recorder) as (backend, client):
        backend.silent = True
        await leave(client, backend, recorder, body)
    assert recorder.calls == [*ARRIVAL, "prepare_attempt", "admit out", "tap closed", *SETTLED]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.completed, outcome.aborted, outcome.attempts) == (499, False, True, 1)
    assert (outcome.target, outcome.bytes_sent, outcome.ttft_seconds) == ("fake", 0, None)


async def test_a_client_that_leaves_while_it_waits_to_be_admitted(recorder: type[Recorder]) -> None:
    class Queueing(recorder):  # type: ignore[misc, valid-type]
        @contextlib.asynccontextmanager
        async def _held(self) -> AsyncIterator[None]:
            self.calls.append("admit in")
            try:
                await asyncio.Event().wait()
                yield
            finally:
                self.calls.append("admit out")

    async with running(Queueing) as (backend, client):
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        while "admit in" not in recorder.calls:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait_for(recorder.done.wait(), 10)
        assert backend.requests == []
    assert recorder.calls == [*ARRIVAL[:-2], "admit out", "on_complete"]
    assert (recorder.outcomes[0].status, recorder.outcomes[0].aborted) == (499, True)


async def test_a_client_that_leaves_before_its_body_is_complete(recorder: type[Recorder]) -> None:
    async with running(recorder) as (_, client):
        host, port = client.base_url.host, client.base_url.port
        _, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        while "authenticate" not in recorder.calls:
            await asyncio.sleep(0.005)
        writer.close()
        await asyncio.wait_for(recorder.done.wait(), 10)
    assert recorder.calls == ["authenticate", "on_complete"]
    (outcome,) = recorder.outcomes
    assert (outcome.status, outcome.aborted, outcome.attempts, outcome.target) == (499, True, 0, None)


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_two_plugins_take_turns_in_the_order_of_the_file(body: Any) -> None:
    calls: list[str] = []

    def named(name: str) -> type[Recorder]:
        class Labels(list[str]):
            def append(self, call: str) -> None:
                calls.append(f"{call} {name}")

        class Labelled(Recorder):
            outcomes, attempts, done = [], [], asyncio.Event()

        Labelled.calls = Labels()
        return Labelled

    async with FakeBackend() as backend, serve(backend.config(), {"a": named("a"), "b": named("b")}) as gateway:
        backend.chunks = 0
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
            await client.post("/v1/chat/completions", json=body)
    both = [call for call in calls if not call.startswith(("tap", "stream"))]
    hooks = ["authenticate", "authorize", "transform_request", "admit", "open_tap", "cache_lookup", "prepare_attempt"]
    hooks += ["transform_reply", *(["wrap_stream"] if body is STREAM else []), *SETTLED]
    pairs = {hook: [f"{hook} a", f"{hook} b"] for hook in hooks}
    pairs["admit"] = ["admit a", "admit in a", "admit b", "admit in b"]
    pairs["on_attempt"] = ["admit out b", "admit out a", "on_attempt a", "on_attempt b"]
    assert both == [call for hook in hooks for call in pairs[hook]]


async def test_the_order_table_puts_a_plugin_first_in_that_hook_alone() -> None:
    calls: list[str] = []

    def named(name: str) -> type[Any]:
        class Named:
            def __init__(self, config: Any, gateway: Any) -> None: ...

            @hookimpl
            async def authorize(self) -> None:
                calls.append(f"authorize {name}")

            @hookimpl
            async def transform_request(self) -> None:
                calls.append(f"transform_request {name}")

        return Named

    plugins = {"a": named("a"), "b": named("b")}
    async with (
        FakeBackend() as backend,
        serve(backend.config(order={"authorize": ["b"]}), plugins) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        await client.post("/v1/chat/completions", json=CHAT)
    assert calls == ["authorize b", "authorize a", "transform_request a", "transform_request b"]


@pytest.mark.parametrize("header", [("x-a", "b"), (b"x-a", b"a\r\nx-b: c")])
async def test_a_plugins_header_that_cannot_be_sent_is_a_fault_of_the_gateway(
    recorder: type[Recorder], header: Any
) -> None:
    class Careless(recorder):  # type: ignore[misc, valid-type]
        @hookimpl
        async def transform_request(self, exchange: Exchange) -> None:
            exchange.response_headers.append(header)

    async with running(Careless) as (_, client):
        response = await client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert [outcome.status for outcome in recorder.outcomes] == [500]


@pytest.mark.parametrize("value", [b"a\r\nx-b: c", b"\0", "text", bytearray(b"a"), None])
async def test_a_header_that_could_be_sent_before_is_looked_at_again(recorder: type[Recorder], value: Any) -> None:
    class Changing(recorder):  # type: ignore[misc, valid-type]
        @hookimpl
        async def transform_request(self, exchange: Exchange) -> None:
            exchange.response_headers += [(b"x-first", b"1"), (b"x-a", values.pop(0))]

    values = [b"good", b"", value, b"good"]
    async with running(Changing) as (_, client):
        answers = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert [answer.headers.get("x-a") for answer in answers] == ["good", "", None, "good"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_admit_holds_may_take_its_time_to_let_go_after_the_last_byte(stream: bool) -> None:
    released: list[bool] = []
    outcomes: list[Outcome] = []

    class Holding:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def admit(self) -> contextlib.AbstractAsyncContextManager[None]:
            return self.slot()

        @contextlib.asynccontextmanager
        async def slot(self) -> AsyncIterator[None]:
            yield
            await asyncio.sleep(0.05)
            released.append(True)

        @hookimpl
        async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
            outcomes.append(outcome)

    async with (
        FakeBackend() as backend,
        serve(backend.config(), {"holding": Holding}) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        async with asyncio.timeout(10):
            while not outcomes:
                await asyncio.sleep(0.005)
    assert response.status_code == 200
    assert (released, outcomes[0].completed, outcomes[0].aborted) == ([True], True, False)


async def test_a_stream_that_the_end_of_the_gateway_cuts_is_told_so_before_plugins_are_closed() -> None:
    order: list[str] = []

    class Witness:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        @contextlib.asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            yield
            order.append("closed")

        @hookimpl
        async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
            assert outcome.error is not None
            order.append(f"{outcome.error.code} {outcome.completed}")

    async with FakeBackend() as backend, httpx.AsyncClient(trust_env=False, timeout=30) as client:
        backend.pause = 0.2
        backend.chunks = 1000
        async with serve(
            {**backend.config(), "server": {"anonymous": True, "shutdown_timeout": 1}}, {"w": Witness}
        ) as g:
            asking = asyncio.ensure_future(client.post(g.url + "/v1/chat/completions", json=STREAM))
            await backend.streaming.wait()
        events = (await asking).text
    assert '"code":"shutting_down"' in events
    assert "[DONE]" not in events
    assert order == ["shutting_down False", "closed"]


async def test_a_plugin_that_lets_a_cancellation_escape_takes_nothing_from_the_others() -> None:
    told: list[str] = []

    def careless(name: str, *, escapes: bool) -> type[Any]:
        class Plugin:
            def __init__(self, config: Any, gateway: Any) -> None: ...

            @hookimpl
            async def on_complete(self, outcome: Outcome) -> None:
                told.append(f"{name} {outcome.completed}")
                if escapes:
                    raise asyncio.CancelledError

        return Plugin

    plugins = {"a": careless("a", escapes=True), "b": careless("b", escapes=False)}
    async with (
        FakeBackend() as backend,
        serve(backend.config(), plugins) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        async with asyncio.timeout(10):
            while len(told) < 2:
                await asyncio.sleep(0.005)
    assert told == ["a True", "b True"]


async def test_what_admit_holds_is_let_go_in_peace_when_the_client_leaves_after_a_failure() -> None:
    released = asyncio.Event()
    releasing = asyncio.Event()

    class Holding:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        @contextlib.asynccontextmanager
        async def admit(self) -> AsyncIterator[None]:
            try:
                yield
            finally:
                releasing.set()
                await asyncio.sleep(0.2)
                released.set()

    async with FakeBackend() as backend, serve(backend.config(), {"holding": Holding}) as gateway:
        backend.status = 500
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
            asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=CHAT))
            await releasing.wait()
            asking.cancel()
            await asyncio.wait([asking])
        async with asyncio.timeout(10):
            await released.wait()
