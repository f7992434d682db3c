"""What `provider = "openai"` means."""

from __future__ import annotations

from headrace.addresses import ca_bundle, http_proxy, openai_root
from headrace.config import BackendConfig
from headrace.exchange import Target
from headrace.openai_api import ENDPOINTS, PATHS, OpenAIBackend

DEFAULT_BASE_URL = "https://api.openai.com/v1"
OWN = ENDPOINTS | {"responses"}
"""What OpenAI itself has."""


class OpenAIProvider(OpenAIBackend):
    """Any OpenAI-compatible server by its address. What more than the usual it has, its configuration says."""

    name = "openai"
    endpoints = frozenset(PATHS)
    native = endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` may be given with or without `/v1`; without one it is OpenAI's own."""
        base_url = openai_root(config.base_url or DEFAULT_BASE_URL)
        return Target(
            name=name,
            provider=self.name,
            base_url=base_url,
            model=config.model or None,
            api_key=config.api_key or None,
            headers=config.headers,
            weight=config.weight,
            timeouts=config.timeouts,
            max_connections=config.max_connections,
            prefill=config.prefill,
            stream_usage=config.stream_usage,
            verify=ca_bundle(config.verify),
            proxy=http_proxy(config.proxy),
            endpoints=self.known(config) or (OWN if base_url == DEFAULT_BASE_URL else ENDPOINTS),
            options=_no_options(config),
        )


def _no_options(config: BackendConfig) -> dict[str, object]:
    if config.options:
        raise ValueError(f"options: the provider 'openai' has none, but {', '.join(config.options)} was given")
    return {}
