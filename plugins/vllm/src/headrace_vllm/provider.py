"""What `provider = "vllm"` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.addresses import ca_bundle, http_proxy, openai_root
from headrace.config import BackendConfig, Secret
from headrace.edits import decode_fields, merge_fields
from headrace.exchange import Attempt, Target, UpstreamRequest
from headrace.openai_api import OpenAIBackend

from . import structured

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from .config import EngineConfig, VllmConfig

ENDPOINTS = ("chat", "completions", "embeddings", "responses", "messages", "count_tokens")
"""What vLLM answers in the client's own words, of what the core knows."""
CONSTRAINED = frozenset(("chat", "completions"))
"""Endpoints whose requests could say `guided_json` and its like."""


class VllmProvider(OpenAIBackend):
    """A vLLM server by its address, or one that the gateway runs."""

    name = "vllm"
    endpoints = frozenset(ENDPOINTS)
    native = endpoints

    def __init__(self, gateway: Gateway, config: VllmConfig) -> None:
        super().__init__(gateway)
        self._engines = config.engines

    def target(self, name: str, config: BackendConfig) -> Target:
        """`options = { engine = "NAME" }`, or `base_url` with or without `/v1`."""
        engine = self._engine(config)
        return Target(
            name=name,
            provider=self.name,
            base_url=f"{engine.url}/v1" if engine is not None else _base_url(config.base_url),
            model=config.model or (engine.served_names[0] if engine is not None else None),
            api_key=config.api_key or (engine.api_key if engine is not None else None),
            headers=config.headers,
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
            prefill=True,
            stream_usage=config.stream_usage,
            verify=ca_bundle(config.verify),
            proxy=_proxy(config.proxy, engine),
            endpoints=self.known(config),
            options=config.options,
        )

    def _engine(self, config: BackendConfig) -> EngineConfig | None:
        """The engine that is meant, if one is."""
        unknown = config.options.keys() - {"engine"}
        if unknown:
            raise ValueError(
                f"options: the provider 'vllm' has `engine` alone, but {', '.join(sorted(unknown))} was given"
            )
        name = config.options.get("engine")
        if name is None:
            return None
        if config.base_url:
            raise ValueError("base_url: an engine of the gateway's own has its address in [plugins.vllm.engines]")
        if name not in self._engines:
            known = ", ".join(self._engines) or "none"
            raise ValueError(f"options: there is no [plugins.vllm.engines.{name}] (there are: {known})")
        return self._engines[name]

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """As for any server that speaks OpenAI's API, but for what vLLM once called otherwise."""
        request = super().build(attempt)
        exchange = attempt.asked
        if not structured.NAMES.isdisjoint(exchange.fields) and exchange.endpoint.name in CONSTRAINED:
            changes = structured.changes(exchange.fields)
            request.body, request.edits = merge_fields(decode_fields(request.body), changes), ()
        return request


def _base_url(url: str) -> str:
    if not url:
        raise ValueError('say where it is: base_url = "http://host:8000", or options = { engine = "NAME" }')
    return openai_root(url)


def _proxy(url: Secret | None, engine: EngineConfig | None) -> Secret | None:
    if url is not None and engine is not None:
        raise ValueError("proxy: an engine on this machine needs none")
    return http_proxy(url)


def root_of(target: Target) -> str:
    """The server's address without `/v1`."""
    return target.base_url.removesuffix("/v1")
