"""The engine's HTTP interface: OpenAI's paths as one small ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from headrace.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    envelope,
    error_object,
)

from .failures import as_gateway_error
from .generation import Generation, Workers
from .llama import Handler, Llama
from .requests import ChatRequest, CompletionRequest, EmbeddingRequest, read
from .wire import Reader, Whole

logger = logging.getLogger("headrace.embedded")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

BYTES_PER_TOKEN = 256
"""No text of more bytes than this for each token of the context can fit: it is refused before it is tokenized."""
BODY_MARGIN = 1 << 20
JSON = b"application/json"


class Incomplete(GatewayError):
    """llama.cpp ended before the answer did."""

    code = "incomplete_answer"

    def __init__(self) -> None:
        super().__init__("The engine stopped in the middle of the answer.")


class Api:
    """Answers requests with one loaded model."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._started = int(time.time())
        self.workers = Workers(llama.options.parallel)
        self._body_limit = llama.context * BYTES_PER_TOKEN + BODY_MARGIN
        self._routes = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._complete),
            "/v1/embeddings": ("POST", self._embed),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(receive, send)
        try:
            method, answer = self._routes[scope["path"]]
            if scope["method"] != method:
                raise MethodNotAllowed(f"{scope['path']} answers {method}.", headers={"Allow": method})
            await answer(exchange)
        except KeyError:
            await exchange.fail(NotFound(f"There is nothing at {scope['path'][:200]}."))
        except GatewayError as error:
            await exchange.fail(error)
        except Exception:
            logger.exception("a request failed")
            await exchange.fail(GatewayError("The engine failed."))

    async def _health(self, exchange: _Exchange) -> None:
        slots = {"total": self.workers.slots, "busy": self.workers.busy}
        await exchange.answer(msgspec.json.encode({"status": "ok", "slots": slots}))

    async def _metrics(self, exchange: _Exchange) -> None:
        text = await asyncio.to_thread(self._llama.metrics)
        await exchange.answer(text.encode(), content_type=b"text/plain; version=0.0.4")

    async def _models(self, exchange: _Exchange) -> None:
        model = {
            "id": self._llama.options.name,
            "object": "model",
            "created": self._started,
            "owned_by": "headrace",
            "max_model_len": self._llama.context,
        }
        await exchange.answer(msgspec.json.encode({"object": "list", "data": [model]}))

    async def _chat(self, exchange: _Exchange) -> None:
        request = read(await exchange.body(self._body_limit), ChatRequest)
        if request.must_call and not self._llama.calls_tools:
            raise InvalidRequest("This model cannot call tools.", param="tool_choice", code="unsupported_parameter")
        await self._generate(exchange, request, self._llama.chat)

    async def _complete(self, exchange: _Exchange) -> None:
        request = read(await exchange.body(self._body_limit), CompletionRequest)
        await self._generate(exchange, request, self._llama.complete)

    async def _embed(self, exchange: _Exchange) -> None:
        if not self._llama.options.embeddings:
            raise InvalidRequest(
                "This engine gives no embeddings: set embeddings = true in [plugins.embedded].",
                code="embeddings_disabled",
            )
        request = read(await exchange.body(self._body_limit), EmbeddingRequest)
        body = msgspec.json.encode(request)
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self.workers.pool, self._llama.embed, body)
        except (ValueError, RuntimeError) as error:
            raise as_gateway_error({"code": 400, "message": str(error)}) from error
        if answer.startswith(b'{"error":'):
            raise as_gateway_error(msgspec.json.decode(answer)["error"])
        await exchange.answer(answer)

    async def _generate(self, exchange: _Exchange, request: ChatRequest | CompletionRequest, handler: Handler) -> None:
        generation = Generation(handler, request.payload(), self.workers)
        async with exchange.stops(generation), contextlib.aclosing(generation.pieces()) as pieces:
            if request.stream:
                await _stream(exchange, request, pieces)
            else:
                await _whole(exchange, request, pieces)


async def _stream(exchange: _Exchange, request: ChatRequest | CompletionRequest, pieces: AsyncIterator[bytes]) -> None:
    """Send events as they come. An answer that is cut ends with an error and never with `[DONE]`."""
    reader = Reader(request)
    try:
        async for piece in pieces:
            event = reader.event(piece)
            if event is not None:
                await exchange.event(event)
        if not reader.complete:
            raise Incomplete()
    except GatewayError as error:
        if not exchange.begun:
            raise
        await exchange.event(msgspec.json.encode({"error": error_object(error)}))
        await exchange.end()
        return
    if request.include_usage:
        await exchange.event(reader.usage_event())
    await exchange.event(b"[DONE]")
    await exchange.end()


async def _whole(exchange: _Exchange, request: ChatRequest | CompletionRequest, pieces: AsyncIterator[bytes]) -> None:
    whole = Whole(request)
    async for piece in pieces:
        whole.add(piece)
    if not whole.reader.complete:
        raise Incomplete()
    await exchange.answer(whole.answer())


class _Exchange:
    """One HTTP request: its body, its answer, and whether the client is still there."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.begun = False

    async def body(self, limit: int) -> bytes:
        """Raises PayloadTooLarge."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            more = message.get("more_body", False)
            if size > limit:
                raise PayloadTooLarge(f"The request is larger than {limit} bytes, far beyond the model's context.")
        return b"".join(parts)

    @contextlib.asynccontextmanager
    async def stops(self, generation: Generation) -> AsyncIterator[None]:
        """Stop a generation when the client leaves."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                continue
            generation.stop()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def answer(self, body: bytes, status: int = 200, content_type: bytes = JSON, extra: Headers = ()) -> None:
        await self._start(status, [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *extra])
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: GatewayError) -> None:
        if not self.begun:
            headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
            await self.answer(envelope(error), error.status, extra=headers)

    async def event(self, data: bytes) -> None:
        """One event; the first brings the head with it."""
        if not self.begun:
            await self._start(200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")])
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Headers) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
