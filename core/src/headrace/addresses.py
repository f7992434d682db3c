"""The addresses that stand in a backend's configuration, as providers check them.

An address is never repeated in an error: it may carry a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from .config import Secret
from .openai_api import PATHS

_BLANK = re.compile(r"\s")


def address(url: str, key: str) -> SplitResult:
    """Take an HTTP address apart.

    Args:
        key: what it is called in the configuration.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not _BLANK.search(url)
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    if not usable:
        raise ValueError(f"{key} is not an address such as http://host:8000")
    return parts


def root(url: str, paths: tuple[str, ...] = ()) -> str:
    """A server's address without the slash at its end, as `base_url` gives it.

    Args:
        paths: endpoints that people write behind it by mistake.

    Raises:
        ValueError: it is none, or carries more than an address.
    """
    parts = address(url, "base_url")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("base_url must not carry a query, a fragment or a user: keys go to api_key")
    stripped = url.rstrip("/")
    for path in paths:
        if stripped.endswith(path):
            raise ValueError(f"base_url must not name an endpoint: leave out {path}")
    return stripped


def openai_root(url: str) -> str:
    """The address of an OpenAI-compatible server, given with or without `/v1`. Raises ValueError."""
    stripped = root(url, tuple(PATHS.values()))
    return stripped if urlsplit(stripped).path else stripped + "/v1"


def ca_bundle(verify: bool | str) -> bool | str:
    """`verify` of a backend. Raises ValueError if it names a file that is not there."""
    if isinstance(verify, str) and not Path(verify).exists():
        raise ValueError(f"verify: there is no file {verify}")
    return verify


def http_proxy(url: Secret | None) -> Secret | None:
    """`proxy` of a backend. Raises ValueError."""
    if url is not None:
        address(url.reveal(), "proxy")
    return url
