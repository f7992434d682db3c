"""What `provider = "openai"` means."""

from __future__ import annotations

from urllib.parse import urlsplit

from headrace.config import BackendConfig
from headrace.exchange import Target
from headrace.openai_api import OpenAIBackend

DEFAULT_BASE_URL = "https://api.openai.com/v1"


class OpenAIProvider(OpenAIBackend):
    """Any OpenAI-compatible server by its address."""

    name = "openai"

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
