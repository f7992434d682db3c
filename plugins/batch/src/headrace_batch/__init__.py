"""Many chats in one request, each a request of its own to the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import PayloadTooLarge, RequestTimeout, Unavailable

from .config import BatchConfig

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from headrace.gateway import Gateway

    from .running import Run

NGINX_WAITS_SECONDS = 600.0
"""For an answer of the core, at least; for a longer batch it is told to wait longer."""
PATH = "/v1/batch/chat/completions"


class Plugin:
    """Answers batches."""

    Config = BatchConfig

    def __init__(self, config: BatchConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        longer = config.timeout - NGINX_WAITS_SECONDS
        gateway.longest_admission = max(gateway.longest_admission, longer)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._open = 0
        self._app: ASGIApp | None = None

    @hookimpl
    def asgi_wrapper(self, app: ASGIApp) -> ASGIApp | None:
        """Nothing is wrapped: this is what items are asked of."""
        self._app = app
        return None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        gateway.add_route(PATH, self._answer, methods=("POST",), require="user", summary="Answer many conversations")

    async def _answer(self, request: Request) -> Response:
        if self._open >= self._config.max_batches:
            message = "Too many batches are being answered (plugins.batch.max_batches)."
            raise Unavailable(message, code="overloaded", headers={"Retry-After": "5"})
        self._open += 1
        try:
            return await self._answered(request)
        finally:
            self._open -= 1

    async def _answered(self, request: Request) -> Response:
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        from .answers import batch
        from .reading import read
        from .running import Run

        assert self._app is not None
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        items = read(body, self._config.max_items)
        run = Run(self._app, request.scope, items, self._config, self._slots)
        watching = asyncio.create_task(_watch(request, run), name="headrace-batch-client")
        try:
            lines = await run.lines()
        finally:
            watching.cancel()
        return Response(batch(request.scope["headrace.id"], lines), media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        """Raises PayloadTooLarge, RequestTimeout."""
        server = self._gateway.config.server
        most = self._config.max_body_bytes or server.max_body_bytes
        parts, size = [], 0
        try:
            async with asyncio.timeout(server.body_timeout):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        message = f"The body is larger than {most} bytes (plugins.batch.max_body_bytes)."
                        raise PayloadTooLarge(message, headers={"Connection": "close"})
        except TimeoutError:
            message = "The request's body did not arrive in time."
            raise RequestTimeout(message, headers={"Connection": "close"}) from None
        return b"".join(parts)


async def _watch(request: Request, run: Run) -> None:
    """Give the batch up once its client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    run.leave()


__all__: Sequence[str] = ["BatchConfig", "Plugin"]
