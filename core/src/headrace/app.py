"""The ASGI application: backend endpoints straight to the pipeline, everything else by Starlette."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from . import audit, offload, openapi, pipeline, routes
from .connection import Connection
from .dialects import Endpoint
from .errors import GatewayError, MethodNotAllowed, NotFound, PluginFault, envelope
from .exchange import Exchange, header
from .front import AGAIN_PATH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .gateway import Gateway, Route

logger = logging.getLogger("headrace.app")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""Request ids of clients that are taken over; any other is replaced."""


def build_app(gateway: Gateway) -> ASGIApp:
    """The whole application, wrapped by whatever plugins wrap it with."""
    return gateway.hooks.asgi_wrapper(App(gateway))


class App:
    """Finds the endpoint by its path in one look-up; the rest of the paths are Starlette's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._endpoints = gateway.endpoints
        self._starlette = _starlette(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._starlette(scope, receive, send)
            return
        gateway, path = self._gateway, scope["path"]
        scope["headrace.id"] = request_id(scope)
        scope["headrace.paths"] = self._endpoints
        endpoint = self._endpoints.get(path)
        connection = Connection(scope, receive, send)
        gateway.open_requests += 1
        try:
            if endpoint is None:
                if path != AGAIN_PATH or not await self._again(scope, receive, send):
                    await self._starlette(scope, receive, _with_id(send, scope["headrace.id"]))
            elif scope["method"] != "POST":
                await _refuse(_post_only(scope), endpoint, connection)
            else:
                exchange = Exchange(id=scope["headrace.id"], endpoint=endpoint, scope=scope)
                await pipeline.answer(exchange, gateway, connection)
        finally:
            gateway.open_requests -= 1
            if gateway.emptied is not None and not gateway.open_requests:
                gateway.emptied.set()

    async def _again(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """nginx asks what to do next about a request. Whether it was nginx."""
        try:
            return await offload.take_back(scope, receive, send, self._gateway)
        except GatewayError as error:
            await _refuse(error, next(iter(self._endpoints.values())), Connection(scope, receive, send))
            return True


def request_id(scope: Any) -> str:
    """The client's `X-Request-ID` if it is a plain token, else a new one."""
    given = header(scope["headers"], b"x-request-id")
    return given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def _post_only(scope: Any) -> MethodNotAllowed:
    return MethodNotAllowed(f"{scope['path']} answers POST, not {scope['method']}.", headers={"Allow": "POST, OPTIONS"})


async def _refuse(error: GatewayError, endpoint: Endpoint, connection: Connection) -> None:
    error.request_id = connection.scope["headrace.id"]
    response = error_response(error, endpoint.dialect.error_body(error))
    headers = [*response.raw_headers, (b"x-request-id", connection.scope["headrace.id"].encode())]
    await connection.start(response.status_code, headers)
    await connection.end(bytes(response.body))


def error_response(error: GatewayError, body: bytes | None = None) -> Response:
    """A GatewayError as a Starlette response, in the OpenAI envelope unless `body` says it otherwise."""
    return Response(body or envelope(error), error.status, error.headers, "application/json")


def _with_id(send: Send, identifier: str) -> Send:
    async def send_with_id(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", identifier.encode())]
        await send(message)

    return send_with_id


def _starlette(gateway: Gateway) -> Starlette:
    own = [
        *routes.core_routes(gateway),
        *(openapi.docs_routes(gateway) if gateway.config.server.docs else ()),
    ]
    app = Starlette(
        routes=[_route(route, gateway) for route in (*own, *gateway.routes)],
        exception_handlers={
            GatewayError: _on_gateway_error,
            HTTPException: _on_http_exception,
        },
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host the client named
    return app


def _route(route: Route, gateway: Gateway) -> StarletteRoute:
    return StarletteRoute(route.path, _guarded(route, gateway), methods=list(route.methods))


def _guarded(route: Route, gateway: Gateway) -> Callable[[Request], Awaitable[Response]]:
    """The route's handler behind its access check; what it raises unexpectedly is a fault that is logged."""

    async def guarded(request: Request) -> Response:
        try:
            if route.require != "public":
                await routes.require(request, gateway, route.require)
            return await route.handler(request)
        except (GatewayError, HTTPException):
            raise
        except Exception as error:
            raise PluginFault("headrace", f"route {route.path}", error) from error

    return audit.audited_route(route, gateway, guarded) if route.require == "admin" else guarded


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    if isinstance(error, PluginFault):
        logger.error("request %s failed: %s", request.scope["headrace.id"], error.detail)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        hint = f" Did you mean /v1{path}?" if f"/v1{path}" in request.scope["headrace.paths"] else ""
        return error_response(NotFound(f"There is nothing at {path}.{hint}"))
    if error.status_code == 405:
        allow = dict(error.headers or {})
        return error_response(MethodNotAllowed(f"{path} does not answer {request.method}.", headers=allow))
    return error_response(GatewayError(error.detail, status=error.status_code))
