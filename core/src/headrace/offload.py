"""Requests that nginx delivers: handed over with a redirect; ended by its report, or given back to be tried again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from . import front
from .connection import ClientLeft, Connection
from .delivery import BROKEN, UNFINISHED, Cut
from .errors import GatewayError, Unavailable
from .estimate import answer_tokens
from .exchange import Attempt, Exchange, Headers, header
from .verdict import Failure, as_error
from .vetting import FAILED, MALFORMED

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .gateway import Gateway
    from .reporting import Reporting

CLIENT_LEFT = 499
"""nginx's number for a client that left before an answer."""


WHY = {"failed": FAILED, "malformed": MALFORMED}
"""What a stream ended with that nginx ended."""


class Watched(msgspec.Struct):
    """What nginx's script saw of a reply."""

    events: int
    """Pieces that passed."""
    size: int
    """Their bytes."""
    cut: bool = False
    """Whether the backend broke off."""
    unfinished: bool = False
    """Whether a stream ended before it had said all: so was the client told, too."""
    finished: bool = False
    """Whether all was said when the backend broke off or fell silent: what is missing is its farewell."""
    why: str = ""
    """What ended a stream that nginx itself ended: `failed` (an error event), `malformed`."""
    whole: bool = True
    """Whether it was watched to its end: not if it had too many pieces."""
    first: float = 0.0
    """When the first piece came: milliseconds since 1970; 0 if none did."""
    usage: bytes = b""
    """From the last `"usage"` on."""


class Report(msgspec.Struct):
    """How a request ended at nginx."""

    id: str
    mark: str
    connection: int
    """nginx's number of the client's connection."""
    status: int
    bytes: int
    completed: bool
    header_time: str = ""
    """`$upstream_header_time`: one for each server visited, in seconds; the last one is the backend's."""
    watched: tuple[Watched, ...] = ()
    """One, where the reply was watched."""
    broken: bool = False
    """Whether nginx complained of the backend in the middle of its reply: set by whoever reads the reports."""


class GivenBack(msgspec.Struct):
    """A backend failed before its first byte: nginx waits for what to do, on this connection."""

    connection: Connection
    failure: Failure


class ReportLost(GatewayError):
    """nginx took a request and never said how it ended."""

    status, type, code = 502, "upstream_error", "report_lost"


class Pending(msgspec.Struct):
    """A request that nginx has."""

    future: asyncio.Future[Report | GivenBack]
    deadline: float
    pid: int


class Handover(msgspec.Struct, frozen=True):
    """How one try is handed to nginx: under which key, to which of its workers, and what it is told."""

    key: str
    pid: int
    headers: Headers


async def hand_over(attempt: Attempt, handover: Handover, reporting: Reporting, connection: Connection) -> Report:
    """Let nginx ask the backend and stream the reply; wait until it is over.

    Raises:
        GatewayError: the backend failed before its first byte, and the request is ours again.
        ReportLost: nobody can say how it ended.
    """
    exchange = attempt.exchange
    attempt.handed_over = True
    pending = reporting.expect(exchange, handover.key, attempt.target, handover.pid)
    handed, at = time.perf_counter(), time.time()
    try:
        await connection.hand_over(handover.headers)
        ended = await pending.future
    except ReportLost:
        exchange.usage = exchange.estimate(_at_most(exchange))
        raise
    finally:
        reporting.forget(handover.key)
    if isinstance(ended, GivenBack):
        connection.adopt(ended.connection)
        raise as_error(ended.failure, attempt.target)
    exchange.first_byte_at = _first_byte(ended, handed, at)
    return ended


def _first_byte(report: Report, handed: float, at: float) -> float | None:
    """When the reply began to arrive, on our clock: its first piece where it was watched, else its head."""
    if report.watched and report.watched[0].first:
        return handed + max(0.0, report.watched[0].first / 1000 - at)
    with contextlib.suppress(ValueError):
        return handed + float(report.header_time.rpartition(" ")[2])
    return None


def conclude(exchange: Exchange, report: Report, connection: Connection) -> None:
    """Take over what nginx reports, as if the core had delivered the reply itself.

    Raises:
        Cut: the backend broke off.
        ClientLeft: the client did not wait for the end.
    """
    http = 200 <= report.status <= 599
    connection.status = report.status if http else Cut.status
    connection.bytes_sent = report.bytes
    exchange.status = None if report.status == CLIENT_LEFT else connection.status
    for seen in report.watched:
        _look_at(seen, report, exchange, connection)
    well = any(seen.finished for seen in report.watched)
    broken = not http or (not well and (report.broken or any(seen.cut for seen in report.watched)))
    cut = broken or any(seen.unfinished for seen in report.watched)
    exchange.close_taps(report.completed and not cut)
    if cut:
        why = next((seen.why for seen in report.watched), "")
        raise Cut(f"The answer is incomplete. {BROKEN if broken else WHY.get(why, UNFINISHED)}")
    if not report.completed:
        connection.left = True
        raise ClientLeft


def _look_at(seen: Watched, report: Report, exchange: Exchange, connection: Connection) -> None:
    """Take over what was seen of the reply."""
    if not seen.whole:  # what followed is reckoned by its size
        if not exchange.streaming:
            return  # nobody knows what it took
        exchange.saw(round(seen.events * report.bytes / max(1, seen.size)), report.bytes)
        return
    connection.bytes_sent = seen.size
    if 200 <= report.status < 300:
        if exchange.streaming:
            exchange.saw(seen.events, seen.size)
        exchange.usage = exchange.endpoint.dialect.usage(seen.usage)


def _at_most(exchange: Exchange) -> int:
    """How many tokens an answer may have had of which nothing is known."""
    return answer_tokens(exchange, exchange.answer_limit or 0)


async def take_back(scope: Scope, receive: Receive, send: Send, gateway: Gateway) -> bool:
    """Answer nginx's question what to do next, in the name of the exchange it belongs to.

    Returns whether it was one: it comes over our socket and shows the mark.

    Raises:
        Unavailable: nobody here knows the exchange.
    """
    headers = scope["headers"]
    mark, key = header(headers, front.MARK), header(headers, front.EXCHANGE)
    if scope["client"] is not None or not mark or not key or gateway.reporting.seat(mark.encode()) is None:
        return False
    connection = Connection(scope, receive, send)
    if gateway.reporting.give_back(key, GivenBack(connection, _failure(headers))):
        released = asyncio.ensure_future(connection.released())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(released)
        await released  # the gateway stops: the exchange is told as well, and answers
        return True
    raise Unavailable("The gateway was restarted while it waited for a backend.", headers={"Retry-After": "1"})


def _failure(headers: Headers) -> Failure:
    """What `front.FAILED` says: for each server visited a value, the last one is the backend's."""
    values = [
        each.replace(",", " ").split()[-1:] or ["-"] for each in (header(headers, front.FAILED) or "||").split("|")
    ]
    status, connect_time, header_time = (each[0] for each in (*values, ["-"], ["-"], ["-"])[:3])
    return Failure(
        int(status) if status.isdigit() else 502,
        connected=connect_time != "-",
        answered=header_time != "-",
        retry_after=header(headers, front.RETRY_AFTER) or None,
    )
