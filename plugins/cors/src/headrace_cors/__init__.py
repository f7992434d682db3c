"""Browsers from other origins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from headrace.gateway import Gateway

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method's or a header's name (RFC 9110, section 5.6.2: a token)."""
HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")

REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "Traceparent", "Tracestate"),
    *("X-Stainless-*", "OpenAI-*", "Idempotency-Key", "User-Agent"),  # what OpenAI's JavaScript client sends
)

RESPONSE_HEADERS = (
    *("x-request-id", "retry-after"),
    # https://platform.openai.com/docs/guides/rate-limits; browsers know no `x-ratelimit-*`, so each is named
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)

DEFAULT_PORTS = {"http": 80, "https": 443}


class CorsConfig(Strict, frozen=True):
    """`[plugins.cors]`: which web pages may call the gateway, and with what."""

    origins: list[str] = msgspec.field(default_factory=list)
    """Origins of the pages that may call, as browsers send them: `https://app.example.com`. `"*"` is every page.
    With none here and no `origin_regex`, the plugin changes nothing."""
    origin_regex: str | None = None
    r"""A regular expression that a whole origin may match instead: `https://[a-z0-9-]+\.example\.com`."""
    methods: list[str] = msgspec.field(default_factory=lambda: ["GET", "POST"])
    """Methods a page may use."""
    headers: list[str] = msgspec.field(default_factory=lambda: list(REQUEST_HEADERS))
    """Request headers a page may send; a `*` at the end of a name stands for any rest, alone for any header.
    The default has those that OpenAI's JavaScript client sends."""
    expose_headers: list[str] = msgspec.field(default_factory=lambda: list(RESPONSE_HEADERS))
    """Response headers a page may read; the default has the request id and OpenAI's rate limit headers.
    `["*"]` is every one; browsers accept that without `credentials` only."""
    max_age: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 600
    """Seconds for which a browser may remember the answer to a preflight request."""
    credentials: bool = False
    """Let browsers send cookies and client certificates along. API keys in headers do not need it."""

    def __post_init__(self) -> None:
        for origin in self.origins:
            _check_origin(origin)
        for key in ("methods", "headers", "expose_headers"):
            _check_names(key, getattr(self, key))
        for method in self.methods:
            if method != method.upper():
                raise ValueError(f"methods: {method!r} is not what browsers send: write {method.upper()!r}")
        allows_strangers = "*" in self.origins or (self.origin_regex is not None and _matches_all(self.origin_regex))
        if self.credentials and allows_strangers:
            raise ValueError("credentials = true needs origins by name: else every web page could act as its user")
        if self.credentials and "*" in self.expose_headers:
            raise ValueError('credentials = true needs expose_headers by name: browsers ignore "*" then')


class Plugin:
    """Answers preflight requests and marks every answer for the pages that may read it."""

    Config = CorsConfig

    def __init__(self, config: CorsConfig, gateway: Gateway) -> None:
        self.config = config

    @hookimpl
    def asgi_wrapper(self, app: ASGIApp) -> ASGIApp | None:
        if not self.config.origins and self.config.origin_regex is None:
            return None
        from .middleware import Cors

        return Cors(app, self.config)


def _check_names(key: str, names: list[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{key}: {name!r} is not a name that HTTP allows: use letters, digits and hyphens")


def _check_origin(origin: str) -> None:
    """Refuse what no browser ever sends as an origin. Raises ValueError with the correction, where there is one."""
    if origin == "*":
        return
    if "*" in origin:
        raise ValueError(f"origins: {origin!r} has a wildcard: use origin_regex for families of origins")
    try:
        correct = _serialized(origin)
    except ValueError as error:  # UnicodeError is one
        raise ValueError(f"origins: {origin!r} is not an origin: {error}") from None
    if origin != correct:
        raise ValueError(f"origins: {origin!r} is not what browsers send: write {correct!r}")


def _serialized(url: str) -> str:
    """A URL's origin as browsers write it (https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin)."""
    from urllib.parse import urlsplit

    parts = urlsplit(url.strip())
    if not parts.scheme or not parts.hostname:
        raise ValueError("write SCHEME://HOST or SCHEME://HOST:PORT, for instance 'https://example.com'")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    if not HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not the name of a host")
    port = "" if parts.port is None or parts.port == DEFAULT_PORTS.get(parts.scheme) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _matches_all(pattern: str) -> bool:
    """Whether a regular expression lets strangers in. Raises ValueError if it is none."""
    try:
        return re.fullmatch(pattern, "https://stranger.invalid") is not None
    except re.error as error:
        raise ValueError(f"origin_regex is not a regular expression: {error}") from None


__all__ = ["CorsConfig", "Plugin"]
