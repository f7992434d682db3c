"""Values of attributes, bounded: whatever clients and backends say, there are no more than configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace.errors import GatewayError

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome, Target

OPERATIONS = {"completions": "text_completion", "messages": "chat", "responses": "chat"}
"""`gen_ai.operation.name` of our endpoints, where it is not their own name."""
OTHER = "_OTHER"
"""OpenTelemetry's word for what is one too many."""
CLIENT_LEFT = "client_left"
MORE_CODES = 128
"""Codes that are told apart beside those of the gateway's own errors: a backend's words may become one."""
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def operation(exchange: Exchange) -> str:
    """`gen_ai.operation.name`."""
    name = exchange.endpoint.name
    return OPERATIONS.get(name, name)


class Names:
    """Admits so many names beyond those that are known from the start."""

    def __init__(self, known: Iterable[str], more: int) -> None:
        self._known, self._room = set(known), more

    def __call__(self, name: str) -> str:
        """The name itself, or `_OTHER`."""
        if name in self._known:
            return name
        if not self._room:
            return OTHER
        self._room -= 1
        self._known.add(name)
        return name


class Errors:
    """`error.type`: the code of what went wrong."""

    def __init__(self) -> None:
        self._names = Names(_own_codes(GatewayError), MORE_CODES)

    def __call__(self, outcome: Outcome) -> str | None:
        """None if all went well."""
        if outcome.aborted:
            return CLIENT_LEFT
        if outcome.error is not None:
            return self.of(outcome.error.code or outcome.error.type)
        if outcome.status >= 400:
            return str(outcome.status)
        return None if outcome.completed else OTHER

    def of(self, code: str) -> str:
        return self._names(code) if _CODE.fullmatch(code) else OTHER


def _own_codes(of: type[GatewayError]) -> Iterator[str]:
    """Codes and types of the gateway's own errors, and of its plugins'."""
    yield from (name for name in (of.code, of.type) if name is not None)
    for kind in of.__subclasses__():
        yield from _own_codes(kind)


def address(target: Target) -> tuple[str, int | None]:
    """`server.address` and `server.port`: a host and its port, or the path of a socket."""
    if target.socket is not None:
        return target.socket, None
    url = urlsplit(target.base_url)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def scheme(exchange: Exchange) -> str:
    """`url.scheme`, as the server in front says it."""
    return "https" if exchange.header(b"x-forwarded-proto") == "https" else "http"
