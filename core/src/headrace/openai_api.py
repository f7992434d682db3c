"""Speaking OpenAI's API to a backend that speaks it too: what the providers of such backends have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from .errors import UpstreamError
from .exchange import Attempt, Reply, Target, UpstreamRequest, merge_fields
from .upstream import forwarded_headers, target_headers

if TYPE_CHECKING:
    from .gateway import Gateway

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
}
"""Where OpenAI's API has what core calls by these names (https://platform.openai.com/docs/api-reference)."""


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class OpenAIBackend:
    """Requests and replies keep their bytes; only the model's name is replaced, where the backend has another.

    A provider inherits this and adds `name` and `target()`; `endpoints` may be narrowed.
    """

    endpoints = frozenset(PATHS)
    native = endpoints

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """The client's body, its headers that may pass, the target's own."""
        exchange, target = attempt.exchange, attempt.target
        body = exchange.body
        if target.model is not None and exchange.peek is not None and exchange.peek.model != target.model:
            body = merge_fields(exchange.fields, {"model": target.model})
        return UpstreamRequest(
            url=target.base_url + PATHS[exchange.endpoint.name],
            headers=forwarded_headers(exchange, target),
            body=body,
        )

    async def send(self, attempt: Attempt) -> Reply:
        """Send what was built. Raises GatewayError."""
        assert attempt.request is not None
        return await self._gateway.upstream.send(attempt.target, attempt.request)

    async def models(self, target: Target) -> Sequence[str]:
        """The names under `/models`. Raises GatewayError."""
        request = UpstreamRequest(
            method="GET", url=target.base_url + "/models", headers=target_headers(target), body=b""
        )
        reply = await self._gateway.upstream.send(target, request)
        await reply.aclose()
        try:
            return [entry.id for entry in msgspec.json.decode(reply.content or b"", type=_ModelList).data]
        except msgspec.MsgspecError as error:
            raise UpstreamError(
                "The backend's list of models cannot be read: is its base_url right?", detail=str(error)
            ) from error
