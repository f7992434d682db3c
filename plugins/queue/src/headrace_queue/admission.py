"""One request's way through the gate, as the hook `admit` wants it: a context that holds a slot."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from headrace.exchange import Exchange

    from .gate import Gate, Waiter

HEADER = "X-Headrace-Queue-Timeout"
_HEADER = HEADER.lower().encode()
COMMENT = b"waiting"


class Admission:
    """Holds a slot, for which it waits if need be."""

    __slots__ = ("_exchange", "_gate", "_keep_alive", "_timeout", "_waiter")

    def __init__(self, gate: Gate, waiter: Waiter, exchange: Exchange, timeout: float, keep_alive: float) -> None:
        self._gate, self._waiter, self._exchange = gate, waiter, exchange
        self._timeout, self._keep_alive = timeout, keep_alive

    async def __aenter__(self) -> None:
        if not self._gate.start(self._waiter):
            await self._wait()

    async def __aexit__(self, *exception: object) -> None:
        self._gate.finish(self._waiter, cost(self._exchange))

    async def _wait(self) -> None:
        exchange = self._exchange
        beat = None
        if self._keep_alive > 0 and exchange.streaming:
            beat = functools.partial(exchange.comment, COMMENT)
        exchange.state["queue"] = await self._gate.wait(self._waiter, self._timeout, self._keep_alive, beat)


def patience(exchange: Exchange, configured: float) -> float:
    """How many seconds this request may wait: as configured, or less if the client says so.

    Raises:
        InvalidRequest: the client says something that is no time.
    """
    text = exchange.header(_HEADER)
    if text is None:
        return configured
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:  # so that "nan" is refused, too
        raise InvalidRequest(f"{HEADER} must be a number of seconds, 0 or more.", param=HEADER)
    return min(seconds, configured)


def cost(exchange: Exchange) -> int | None:
    """Tokens that a request has cost; None if a backend was asked and nobody counted them."""
    usage = exchange.usage
    if usage is not None:
        return usage.prompt_tokens + usage.completion_tokens
    return None if exchange.attempts else 0
