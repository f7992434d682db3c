"""Pictures that a request names by their address, fetched from where the operator allows that."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace.config import TargetTimeouts
from headrace.errors import GatewayError, InvalidRequest
from headrace.exchange import Target, UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.upstream import Upstream

MOST = 8
"""Pictures of one request that are fetched."""
TIMEOUTS = TargetTimeouts(connect=5.0, first_byte=20.0, idle=10.0)
HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity"}


async def fetched(urls: Sequence[str], origins: Sequence[str], upstream: Upstream) -> Mapping[str, str]:
    """Those pictures that may be fetched, by their address, in base64. No redirect is followed.

    Raises:
        InvalidRequest: one cannot be had.
    """
    allowed = {url: origin for url in urls if (origin := _origin(url)) in origins}
    if len(allowed) > MOST:
        raise InvalidRequest(f"A request may name {MOST} pictures by their address.", param="messages")
    fetching = [asyncio.ensure_future(_fetch(url, str(origin), upstream)) for url, origin in allowed.items()]
    try:
        return dict(zip(allowed, await asyncio.gather(*fetching), strict=True))
    finally:
        for each in fetching:  # one that cannot be had is enough
            each.cancel()


def _origin(url: str) -> str | None:
    """Where an address leads, as the configuration names that; None if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")


async def _fetch(url: str, origin: str, upstream: Upstream) -> str:
    target = Target(name=f"pictures of {origin}", provider="ollama", base_url=origin, timeouts=TIMEOUTS)
    request = UpstreamRequest(method="GET", url=url, headers=dict(HEADERS), body=b"")
    try:
        reply = await upstream.send(target, request, checked=False)
    except GatewayError as error:
        raise _missing(url, error.message) from error
    await reply.aclose()
    if reply.content is None:
        raise _missing(url, "It is too large.")
    if reply.status != 200 or not reply.media_type.startswith("image/"):
        raise _missing(url, f"The answer is {reply.status}, {reply.media_type or 'of no type'}, and no picture.")
    return base64.b64encode(reply.content).decode()


def _missing(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"The picture {url[:200]!r} cannot be had. {why}", param="messages", code="unsupported_content"
    )
