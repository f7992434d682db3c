"""What `provider = "embedded"` means: the engine beside the core, reached by its unix socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.config import BackendConfig
from headrace.exchange import Target
from headrace.openai_api import ENDPOINTS, OpenAIBackend

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import EmbeddedConfig

BASE_URL = "http://localhost/v1"
NOT_OURS = ("base_url", "api_key", "proxy", "options")
"""Keys of a backend that have no meaning for an engine of our own."""


class EmbeddedProvider(OpenAIBackend):
    """The engine, over its socket."""

    name = "embedded"

    def __init__(self, gateway: Gateway, config: EmbeddedConfig) -> None:
        super().__init__(gateway)
        self.endpoints = ENDPOINTS if config.embeddings else ENDPOINTS - {"embeddings"}
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
            stream_usage=config.stream_usage,
        )


def socket_path(gateway: Gateway) -> Path:
    """Where the engine listens."""
    return gateway.runtime_dir / "embedded.sock"
