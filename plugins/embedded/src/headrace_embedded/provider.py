"""What `provider = "embedded"` means: the engine beside the core, reached by its unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.config import BackendConfig
from headrace.errors import UpstreamError
from headrace.exchange import Attempt, Reply, Target, UpstreamRequest, merge_fields
from headrace.upstream import forwarded_headers, target_headers

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import EmbeddedConfig

BASE_URL = "http://localhost/v1"
PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
NOT_OURS = ("base_url", "api_key", "proxy", "options")
"""Keys of a backend that have no meaning for an engine of our own."""


class _ModelEntry(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


class EmbeddedProvider:
    """Speaks OpenAI's API over the engine's socket: requests and replies keep their bytes."""

    name = "embedded"

    def __init__(self, gateway: Gateway, config: EmbeddedConfig) -> None:
        self._gateway = gateway
        self.endpoints = frozenset(PATHS if config.embeddings else PATHS.keys() - {"embeddings"})
        self.native = self.endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        """There is one engine, so a backend of this provider needs nothing but its name."""
        given = [key for key in NOT_OURS if getattr(config, key)]
        if given:
            raise ValueError(f"{', '.join(given)}: not for the provider 'embedded'; see [plugins.embedded]")
        return Target(
            name=name,
            provider=self.name,
            base_url=BASE_URL,
            socket=str(socket_path(self._gateway)),
            model=config.model or None,
            headers=config.headers,
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
        )

    def build(self, attempt: Attempt) -> UpstreamRequest:
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
        assert attempt.request is not None
        return await self._gateway.upstream.send(attempt.target, attempt.request)

    async def models(self, target: Target) -> Sequence[str]:
        request = UpstreamRequest(
            method="GET", url=target.base_url + "/models", headers=target_headers(target), body=b""
        )
        reply = await self._gateway.upstream.send(target, request)
        try:
            return [entry.id for entry in msgspec.json.decode(reply.content or b"", type=_ModelList).data]
        except msgspec.MsgspecError as error:
            raise UpstreamError("The engine's list of models cannot be read.", detail=str(error)) from error


def socket_path(gateway: Gateway) -> Path:
    """Where the engine listens."""
    return gateway.runtime_dir / "embedded.sock"
