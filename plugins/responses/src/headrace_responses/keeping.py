"""Answers on their way out, kept once they are complete: what a backend gave itself, and what was translated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from headrace.exchange import Exchange
from headrace.streaming import Event

from .dialect import LAST, UNREADABLE, ResponsesPeek
from .store import Entry
from .translation import turn_of

logger = logging.getLogger("headrace.responses")


class _Last(msgspec.Struct):
    type: str
    response: msgspec.Raw


class _Item(msgspec.Struct):
    id: str | None = None


class _Body(msgspec.Struct):
    id: str
    status: str
    output: list[_Item]
    previous_response_id: str | None = None


_last = msgspec.json.Decoder(_Last).decode
_body = msgspec.json.Decoder(_Body).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
FINAL = frozenset(("completed", "incomplete"))


class Keeper:
    """A tap that has a complete answer kept.

    Args:
        keep: is given what is to be kept.
        ttl: for so many seconds.
        most: bytes; larger ones are not kept.
    """

    wants: Literal["bytes", "events", "usage"] = "events"

    def __init__(self, exchange: Exchange, keep: Callable[[Entry], None], ttl: float, most: int) -> None:
        self._exchange, self._keep, self._ttl, self._most = exchange, keep, ttl, most
        self._streams = exchange.streaming
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, item: Event) -> None:
        """Of a stream the last event matters alone; of a whole answer everything, which may come in parts."""
        if self._streams and item.name not in LAST and (item.name is not None or b'"response.' not in item.data):
            return
        if self._streams:
            self._parts, self._size = [], 0
        self._size += len(item.data)
        if self._size <= self._most:
            self._parts.append(item.data)

    def close(self, completed: bool) -> None:
        if not completed or self._exchange.status != 200 or not self._parts:
            return
        if self._size > self._most:
            logger.warning("request %s: the answer is too large to be kept", self._exchange.id)
            return
        try:
            self._keep_body(b"".join(self._parts))
        except UNREADABLE:
            logger.warning("request %s: the answer is not kept: it is no response", self._exchange.id)

    def _keep_body(self, data: bytes) -> None:
        if self._streams:
            last = _last(data)
            if last.type not in LAST:
                return
            data = bytes(last.response)
        body = _body(data)
        if body.status not in FINAL:
            return
        entry = self._entry(data, body)
        if entry.size <= self._most:
            self._keep(entry)
        else:
            logger.warning("request %s: the conversation is too large to be kept", self._exchange.id)

    def _entry(self, data: bytes, body: _Body) -> Entry:
        exchange = self._exchange
        assert exchange.principal is not None and isinstance(exchange.peek, ResponsesPeek)
        previous = turn_of(exchange).previous
        if previous != body.previous_response_id:  # a backend that was told the whole conversation does not know
            data = _encode({**_fields(data), "previous_response_id": previous})
        ids = tuple(item.id for item in body.output if item.id)
        items = listed(exchange.peek.input)
        return Entry(exchange.principal.id, body.id, data, items, ids, time.time() + self._ttl)


def listed(given: msgspec.Raw) -> bytes:
    """An input as a list of items: a text is a message of the user's."""
    data = bytes(given)
    if data.startswith(b'"'):
        return b'[{"type":"message","role":"user","content":%b}]' % data
    return data if data.startswith(b"[") else b"[]"
