"""One look at the issuer's keys, over the gateway's own HTTP client."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from headrace.config import TargetTimeouts
from headrace.errors import GatewayError
from headrace.exchange import Reply, Target, UpstreamRequest, header

from . import keyset
from .keyset import KeySet

if TYPE_CHECKING:
    from headrace.upstream import Upstream

    from .config import JwtConfig

SIZE_LIMIT = 512 * 1024
"""Bytes of an answer. Real ones have 1 to 10 kB."""
HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,9})\b", re.IGNORECASE)


class Fetched(msgspec.Struct, frozen=True):
    """What a fetch has brought."""

    keys: KeySet
    body: bytes
    """As it came: the keys are others if this is another."""
    max_age: float | None
    """Seconds, as the issuer's `Cache-Control` says."""


class FetchError(Exception):
    """The keys could not be fetched; says why, in words for a log."""


class Fetcher:
    """Fetches the keys from one address. Follows no redirects, sends no credentials, keeps no connection open."""

    def __init__(self, config: JwtConfig, upstream: Upstream) -> None:
        assert config.jwks_url is not None
        self._url = config.jwks_url
        self._timeout = config.jwks_timeout
        self._algorithms = config.algorithms
        self._upstream = upstream
        self._target = Target(
            name="jwt: the issuer's keys",
            provider="jwt",
            base_url=public_part(config.jwks_url),
            timeouts=TargetTimeouts(connect=config.jwks_timeout, keep_alive=0),
            verify=config.jwks_ca or True,
            proxy=config.jwks_proxy,
        )

    async def fetch(self) -> Fetched:
        """Raises FetchError."""
        reply = await self._answer()
        body = reply.content
        if 300 <= reply.status < 400:
            raise FetchError(f"it answers {reply.status}: redirects are not followed, give the address it leads to")
        if reply.status != 200:
            raise FetchError(f"it answers {reply.status}")
        if body is None or len(body) > SIZE_LIMIT:
            raise FetchError(f"the answer is larger than {SIZE_LIMIT} bytes, or has no end")
        try:
            keys = await asyncio.to_thread(keyset.from_jwks, body, self._algorithms)  # a set may take milliseconds
        except ValueError as error:
            raise FetchError(str(error)) from None
        return Fetched(keys, body, _max_age(reply))

    async def _answer(self) -> Reply:
        request = UpstreamRequest(url=self._url, headers=dict(HEADERS), body=b"", method="GET")
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._upstream.send(self._target, request, checked=False)
                await reply.aclose()
        except TimeoutError:
            raise FetchError(f"it does not answer within {self._timeout:g} s") from None
        except GatewayError as error:
            raise FetchError(error.detail or error.message) from None
        except (OSError, ValueError) as error:  # `jwks_ca` is read with the first fetch
            raise FetchError(f"{type(error).__name__}: {error}") from None
        return reply


def public_part(url: str) -> str:
    """An address without its query, which may hold what is not for logs."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _max_age(reply: Reply) -> float | None:
    found = MAX_AGE.search(header(reply.headers, b"cache-control") or "")
    return float(found[1]) if found else None
