"""Starlette's CORS middleware, with header names by prefix and refusals that say what was refused."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.cors import SAFELISTED_HEADERS, CORSMiddleware
from starlette.responses import Response

from headrace.errors import InvalidRequest, envelope

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from . import CorsConfig

NOT_OF_A_REFUSAL = ("content-type", "content-length", "access-control-allow-headers")


class Cors(CORSMiddleware):
    """Outside of everything else: a preflight request carries no key and is answered before anyone asks for one.

    Passes the body's messages on as they are; only the head of an answer is changed.
    """

    def __init__(self, app: ASGIApp, config: CorsConfig) -> None:
        super().__init__(
            app,
            allow_origins=config.origins,
            allow_origin_regex=config.origin_regex,
            allow_methods=config.methods,
            allow_headers=["*"],  # mirrored, after the check below: Starlette knows no prefixes
            expose_headers=config.expose_headers,
            max_age=config.max_age,
            allow_credentials=config.credentials,
        )
        names = [name.lower() for name in (*config.headers, *SAFELISTED_HEADERS)]
        self._names = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        """As Starlette's, but without a coroutine around each chunk: those are handed straight to `send`."""

        def marked(message: Message) -> Awaitable[None]:
            if message["type"] != "http.response.start":
                return send(message)
            return self.send(message, send, request_headers)

        await self.app(scope, receive, marked)

    def preflight_response(self, request_headers: Headers) -> Response:
        """200 for a request that the page may make, 400 with the reason for any other."""
        response = super().preflight_response(request_headers)
        reason = self._refusal(request_headers)
        if response.status_code == 200 and reason is None:
            return response
        error = InvalidRequest(reason or "Pages of a public network may not call this gateway.", code="cors_refused")
        kept = {name: value for name, value in response.headers.items() if name not in NOT_OF_A_REFUSAL}
        return Response(envelope(error), error.status, kept, "application/json")

    def _refusal(self, request_headers: Headers) -> str | None:
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        if not self.is_allowed_origin(origin):
            return f"Pages from {origin[:200]!r} may not call this gateway from a browser."
        if method not in self.allow_methods:
            return f"Pages may not use the method {method[:50]!r} here."
        for name in request_headers.get("access-control-request-headers", "").split(","):
            if not self._may_send(name.strip().lower()):
                return f"Pages may not send the header {name.strip()[:100]!r} here."
        return None

    def _may_send(self, name: str) -> bool:
        return not name or name in self._names or name.startswith(self._prefixes)
