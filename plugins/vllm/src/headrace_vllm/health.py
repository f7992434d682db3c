"""Asking vLLM how it is.

`/health` (vLLM's `entrypoints/serve/instrumentator/health.py`) is 200, or 503 once its engine is dead; the port opens
only when the model is loaded. The list of models has its adapters too, and tells whether it takes our key, for which
`/health` does not ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import GatewayError, Unavailable
from headrace.exchange import Target, UpstreamRequest
from headrace.providers import Health
from headrace.upstream import target_headers

from .launcher import engine_of
from .provider import VllmProvider, root_of

if TYPE_CHECKING:
    from headrace.gateway import Gateway


class VllmCheck:
    """The check for targets of the provider `vllm`."""

    def __init__(self, gateway: Gateway, provider: VllmProvider) -> None:
        self._gateway, self._provider = gateway, provider

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
        if status != 200:
            return Health(ok=False, reason=_meaning(status))
        try:
            names = await self._provider.models(target)
        except GatewayError as error:
            if error.code == "upstream_auth":
                raise
            return Health(ok=True)  # it is up, whatever it lists
        if target.model is None or target.model in names:
            return Health(ok=True)
        return Health(ok=True, reason=f"answers, but does not list the model {target.model!r}: is its name right?")

    async def _status(self, target: Target) -> int:
        request = UpstreamRequest(
            method="GET", url=root_of(target) + "/health", headers=target_headers(target), body=b""
        )
        reply = await self._gateway.upstream.send(target, request, checked=False)
        await reply.aclose()
        return reply.status


def _meaning(status: int) -> str:
    if status == 503:
        return "its engine is dead: 503 at /health"
    advice = ": is its base_url right?" if status in (404, 405) or 300 <= status < 400 else ""
    return f"it answers {status} at /health{advice}"
