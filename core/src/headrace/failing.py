"""How a request that failed is answered: an error in the words of the client's dialect, or an event of its stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from .connection import ClientLeft, Connection
from .delivery import Cut, head
from .errors import GatewayError, PluginFault, Unavailable
from .exchange import Exchange, Headers

if TYPE_CHECKING:
    from .gateway import Gateway

FAREWELL_SECONDS = 2.0
logger = logging.getLogger("headrace.pipeline")


async def within(seconds: float, farewell: Coroutine[Any, Any, None], connection: Connection) -> None:
    """Say the last words to a client who may not read at all: its time is over."""
    try:
        async with asyncio.timeout(seconds):
            await farewell
    except TimeoutError:
        connection.abort()


async def send_error(exchange: Exchange, exception: Exception, gateway: Gateway, connection: Connection) -> None:
    """Answer with an error, in the words of the client's dialect, unless an answer has already begun."""
    for attempt in exchange.attempts:
        attempt.end()  # whatever the client still has to read
    if isinstance(exception, ClientLeft):
        return
    exchange.failure = as_it_is(exchange, exception, gateway)
    exchange.error = error = await gateway.hooks.handle_error(exchange, exchange.failure)
    error.request_id = exchange.id
    if connection.away:
        return
    if connection.status is not None:
        if connection.events and not connection.ended:
            farewell = connection.end(b"\n\n" + exchange.endpoint.dialect.error_event(error))
            await (
                farewell
                if exchange.failure.code != "deadline_exceeded"
                else within(FAREWELL_SECONDS, farewell, connection)
            )
        return
    body = exchange.endpoint.dialect.error_body(error)
    headers = [
        (name.lower().encode("ascii", "replace"), value.encode("latin-1", "replace"))
        for name, value in error.headers.items()
        if value.isprintable()
    ]
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await connection.start(error.status, [*own, *head_of_error(exchange), *headers])
    await connection.end(body)


def head_of_error(exchange: Exchange) -> Headers:
    """The headers every answer has; without those of plugins if one of them cannot be sent."""
    try:
        return head(exchange, [])
    except PluginFault as fault:
        logger.error("request %s: %s", exchange.id, fault.detail)
        return head(exchange, [])


def stopping() -> GatewayError:
    """What a request is told that the end of the gateway cuts short."""
    return Unavailable("The gateway is stopping.", code="shutting_down", headers={"Retry-After": "2"})


def as_it_is(exchange: Exchange, exception: Exception, gateway: Gateway) -> GatewayError:
    """Any exception as an error that can be answered; faults of ours are logged with their reason."""
    error = exception if isinstance(exception, GatewayError) else PluginFault("headrace", "pipeline", exception)
    if isinstance(error, PluginFault | Cut):
        trace = error.__cause__ if gateway.config.server.trace_errors else None
        logger.error("request %s failed: %s", exchange.id, error.detail or error.message, exc_info=trace)
    return error
