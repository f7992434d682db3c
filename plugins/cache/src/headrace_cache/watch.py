"""The tap of a request that may lead: what passes is given to those who follow, and kept at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from headrace.errors import GatewayError

if TYPE_CHECKING:
    from headrace.exchange import Exchange

    from .desk import Desk
    from .flight import Flight
    from .plan import Plan

MOST_WHOLE = 16_777_216
"""Bytes of a whole answer that is given to all who wait for it, kept or not."""


class Watch:
    """Watches one answer. Until its request leads, it does nothing."""

    wants: Literal["bytes", "events", "usage"] = "bytes"

    def __init__(self, exchange: Exchange, plan: Plan, desk: Desk) -> None:
        self._exchange: Exchange | None = exchange
        self._plan, self._desk = plan, desk
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, item: bytes) -> None:
        flight, exchange = self._plan.flight, self._exchange
        if flight is None or exchange is None:
            return  # it follows
        if exchange.status == 200 and exchange.taps is not None and exchange.taps.event_stream:
            flight.dropped = exchange.dropped
            try:
                flight.feed(item)
            except BaseException:  # this tap is asked no more, then: nobody must wait for what it would say
                flight.fail()
                raise
            return
        self._size += len(item)
        if self._size <= MOST_WHOLE:
            self._parts.append(item)
        else:
            self._parts.clear()

    def close(self, completed: bool) -> None:
        flight, exchange = self._plan.flight, self._exchange
        self._plan.flight = self._exchange = None  # exchange, tap and flight hold one another no longer
        if flight is None or exchange is None:
            return
        try:
            if not completed:
                flight.fail(_failure(exchange))
            elif flight.state == "streaming":
                self._keep_stream(exchange, flight)
            else:
                self._give_whole(exchange, flight)
        finally:
            flight.fail()  # if nothing else has come of it: nobody must wait for ever

    def _keep_stream(self, exchange: Exchange, flight: Flight) -> None:
        if flight.whole:
            self._desk.entry(exchange, self._plan, "stream", flight.body())
        flight.land()

    def _give_whole(self, exchange: Exchange, flight: Flight) -> None:
        body = b"".join(self._parts)
        if exchange.status is None or self._size > MOST_WHOLE:
            flight.alone = True
            flight.fail()
        elif exchange.status != 200:
            flight.fail(refusal=(exchange.status, body))
        else:
            flight.land(self._desk.entry(exchange, self._plan, "whole", body))


def _failure(exchange: Exchange) -> GatewayError | None:
    """What went wrong with the leader's answer, but for what is its client's matter."""
    error: BaseException | None = exchange.failure or sys.exception()
    if isinstance(error, GatewayError) and isinstance(error.__cause__, GatewayError):
        error = error.__cause__  # a stream was cut, and this is why
    return error if isinstance(error, GatewayError) else None
