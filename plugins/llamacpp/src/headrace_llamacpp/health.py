"""Asking llama.cpp how it is.

`/health` is 200, or 503 while it loads its model, and wants no key; `/props` wants it, and tells what is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.errors import GatewayError, Unavailable, UpstreamError
from headrace.exchange import Target, UpstreamRequest
from headrace.providers import Health
from headrace.upstream import target_headers

from .launcher import engine_of
from .provider import root_of

if TYPE_CHECKING:
    from headrace.gateway import Gateway


class Settings(msgspec.Struct):
    n_ctx: int | None = None


class Props(msgspec.Struct):
    """What `/props` tells, as far as it is of use."""

    total_slots: int = 0
    model_alias: str = ""
    model_path: str = ""
    build_info: str = ""
    default_generation_settings: Settings = msgspec.field(default_factory=Settings)


class LlamacppCheck:
    """The check for targets of the provider `llamacpp`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def check(self, target: Target) -> Health:
        """May raise GatewayError."""
        try:
            status = await self._status(target)
        except Unavailable:
            engine = engine_of(target)
            if engine is None:
                raise
            reason = f"the engine {engine!r} is loading its model, or `headrace up` is not running"
            return Health(ok=False, starting=True, reason=reason)
        if status == 503:
            return Health(ok=False, starting=True, reason="it is loading its model")
        if status != 200:
            advice = ": is its base_url right?" if status in (404, 405) or 300 <= status < 400 else ""
            return Health(ok=False, reason=f"it answers {status} at /health{advice}")
        try:
            await props(self._gateway, target)
        except GatewayError as error:
            if error.code == "upstream_auth":
                raise
        return Health(ok=True)

    async def _status(self, target: Target) -> int:
        request = UpstreamRequest(
            method="GET", url=root_of(target) + "/health", headers=target_headers(target), body=b""
        )
        reply = await self._gateway.upstream.send(target, request, checked=False)
        await reply.aclose()
        return reply.status


async def props(gateway: Gateway, target: Target) -> Props:
    """What a server has loaded. Raises GatewayError."""
    return _read(await get(gateway, target, "/props"), Props)


async def get(gateway: Gateway, target: Target, path: str) -> bytes:
    """What a server says. Raises GatewayError."""
    request = UpstreamRequest(method="GET", url=root_of(target) + path, headers=target_headers(target), body=b"")
    reply = await gateway.upstream.send(target, request)
    await reply.aclose()
    if not reply.ok:
        raise UpstreamError(f"The backend answers {path} with status {reply.status}.")
    return reply.content or b""


def _read(content: bytes, kind: type[Props]) -> Props:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpstreamError("The answer cannot be read: is it llama.cpp?", detail=str(error)) from error
