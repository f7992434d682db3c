"""What `provider = "openai"` means."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from headrace.config import BackendConfig, Secret
from headrace.exchange import Target
from headrace.openai_api import ENDPOINTS, PATHS, OpenAIBackend

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_BLANK = re.compile(r"\s")


OWN = ENDPOINTS | {"responses"}
"""What OpenAI itself has."""


class OpenAIProvider(OpenAIBackend):
    """Any OpenAI-compatible server by its address. What more than the usual it has, its configuration says."""

    name = "openai"
    endpoints = frozenset(PATHS)
    native = endpoints

    def target(self, name: str, config: BackendConfig) -> Target:
        """`base_url` may be given with or without `/v1`; without one it is OpenAI's own."""
        base_url = _base_url(config.base_url or DEFAULT_BASE_URL)
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
            verify=_verify(config.verify),
            proxy=_proxy(config.proxy),
            endpoints=self.known(config) or (OWN if base_url == DEFAULT_BASE_URL else ENDPOINTS),
            options=_no_options(config),
        )


def _no_options(config: BackendConfig) -> dict[str, object]:
    if config.options:
        raise ValueError(f"options: the provider 'openai' has none, but {', '.join(config.options)} was given")
    return {}


def _verify(verify: bool | str) -> bool | str:
    if isinstance(verify, str) and not Path(verify).exists():
        raise ValueError(f"verify: there is no file {verify}")
    return verify


def _proxy(url: Secret | None) -> Secret | None:
    if url is not None:
        _check_address(url.reveal(), "proxy")
    return url


def _base_url(url: str) -> str:
    parts = _check_address(url, "base_url")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("base_url must not carry a query, a fragment or a user: keys go to api_key")
    stripped = url.rstrip("/")
    for path in PATHS.values():
        if stripped.endswith(path):
            raise ValueError(f"base_url must not name an endpoint: leave out {path}")
    return stripped if parts.path.strip("/") else stripped + "/v1"


def _check_address(url: str, key: str) -> SplitResult:
    """Raises ValueError, without repeating an address that may carry a password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not _BLANK.search(url)
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    if not usable:
        raise ValueError(f"{key} is not an address such as http://host:8000")
    return parts
