"""What `provider = "openai"` means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from headrace.config import BackendConfig
from headrace.errors import UpstreamError
from headrace.exchange import Attempt, Reply, Target, UpstreamRequest, merge_fields
from headrace.upstream import forwarded_headers, target_headers

if TYPE_CHECKING:
    from headrace.gateway import Gateway

DEFAULT_BASE_URL = "https://api.openai.com/v1"

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


class OpenAIProvider:
    """Speaks OpenAI's API to a server that speaks it too: requests and replies keep their bytes."""

    name = "openai"
    endpoints = frozenset(PATHS)
    native = endpoints

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` may be given with or without `/v1`; without one it is OpenAI's own."""
        return Target(
            name=name,
            provider=self.name,
            base_url=_base_url(config.base_url or DEFAULT_BASE_URL),
            model=config.model or None,
            api_key=config.api_key or None,
            headers=config.headers,
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
            verify=config.verify,
            proxy=config.proxy,
            options=_no_options(config),
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
            raise UpstreamError(
                "The backend's list of models cannot be read: is its base_url right?", detail=str(error)
            ) from error


def _no_options(config: BackendConfig) -> dict[str, object]:
    if config.options:
        raise ValueError(f"options: the provider 'openai' has none, but {', '.join(config.options)} was given")
    return {}


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {url!r} is not an http:// or https:// address")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("base_url must not carry a query, a fragment or a user: keys go to api_key")
    stripped = url.rstrip("/")
    return stripped if parts.path.strip("/") else stripped + "/v1"
