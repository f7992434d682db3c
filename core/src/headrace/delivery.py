"""Moving a reply's bytes from here: the `inline` delivery. The other one is `offload.py`; `choice.py` says which."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from .connection import Connection
from .dialects import asks_for_usage
from .errors import GatewayError, PluginFault, UpstreamError, UpstreamTimeout
from .estimate import choices
from .exchange import Exchange, Headers, Reply, Usage
from .front import CARRIED, REPORT
from .hooks import Hooks
from .pump import Pump
from .streaming import Tail, Taps, UsageHider
from .vetting import BadEvent, Vetting

if TYPE_CHECKING:
    from .dialects import Dialect

BROKEN = "The connection to the backend broke."
UNFINISHED = "The backend ended the stream before the answer was complete."
STREAM_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
DROPPED = b"x-headrace-dropped"
"""Names what of the request the backend was not asked, since it cannot be said to it."""
FREE = Usage()
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")

NOT_OURS = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer upgrade transfer-encoding content-length "
    b"date server via set-cookie x-request-id alt-svc strict-transport-security www-authenticate refresh "
    b"clear-site-data openai-organization openai-project".split()
) | {name.encode() for name in CARRIED if name.startswith("x-")}
"""Response headers of a backend that end here: hop by hop, or the gateway's own to say."""


NOT_OURS_PREFIXES = (b"x-accel-", b"x-headrace-", b"access-control-")


class Cut(GatewayError):
    """The answer ended early, after some of it had reached the client."""

    status, type, code = 502, "upstream_error", "stream_truncated"


async def deliver(exchange: Exchange, reply: Reply, hooks: Hooks, connection: Connection) -> None:
    """Send a reply to the client, whole or as a stream.

    Raises:
        Cut: the reply broke off. A stream has then been ended with an error event and without `[DONE]`;
            a reply that is no event stream is left unfinished, so that the connection breaks.
    """
    event_stream, exchange.source = reply.is_event_stream, reply.source
    if connection.status is not None and not (event_stream and reply.ok):
        raise told_late(reply)
    taps = exchange.taps
    if taps is not None:
        taps.event_stream = event_stream
    completed = False
    try:
        if reply.content is not None:
            await _send_whole(exchange, reply, reply.content, taps, connection)
        else:
            await _send_stream(exchange, reply, hooks, taps, connection, event_stream)
        completed = True
    finally:
        exchange.close_taps(completed or exchange.completed)


async def _send_whole(
    exchange: Exchange, reply: Reply, content: bytes, taps: Taps | None, connection: Connection
) -> None:
    if taps is not None:
        taps.feed(content)
    exchange.first_byte_at = exchange.first_byte_at or time.perf_counter()
    if reply.ok:
        exchange.usage = _spent(exchange, content)
    exchange.status = reply.status
    length = (b"content-length", str(len(content)).encode())
    await connection.start(reply.status, [*head(exchange, reply.headers), length])
    await connection.end(content)


def _spent(exchange: Exchange, said: bytes) -> Usage | None:
    """What a reply, or the ends of one, says that it took."""
    return exchange.endpoint.dialect.usage(said) if exchange.source != "cache" else FREE


async def _send_stream(
    exchange: Exchange, reply: Reply, hooks: Hooks, taps: Taps | None, connection: Connection, event_stream: bool
) -> None:
    assert reply.stream is not None
    hider = UsageHider() if _hides_usage(exchange, reply) else None
    shown = hider.shown(reply.stream) if hider is not None else reply.stream
    stream = hooks.wrap_stream(exchange, shown)
    if taps is not None and taps.watcher:
        stream = taps.watch(stream)
    plain = stream is shown  # no plugin has its hands in it
    dialect = exchange.endpoint.dialect
    tail, vetting = Tail(), dialect.vetting(choices(exchange)) if event_stream else None
    connection.events = event_stream
    exchange.status = reply.status
    if connection.status is None:
        await connection.start(reply.status, head(exchange, reply.headers))
    try:
        hurry = getattr(reply.stream, "hurry", None)
        pump = Pump(exchange, connection, tail, hider=hider if plain else None, vetting=vetting, hurry=hurry)
        await pump.run(reply.stream if plain else stream)
        rest = vetting.rest() if vetting is not None else b""
        tail.add(rest)
        if event_stream and not (_has_all(vetting, bytes(tail)) and _is_complete(dialect, vetting, bytes(tail))):
            raise UpstreamError(UNFINISHED)
        if rest:
            await connection.send(rest)
    except Exception as error:
        if _only_the_farewell_is_missing(vetting, error):
            await connection.end()  # all was said; what broke is the farewell
            return
        cause = error if isinstance(error, GatewayError) else PluginFault("headrace", "wrap_stream", error)
        cut = Cut(f"The answer is incomplete. {cause.message}", detail=cause.detail)
        cut.request_id = exchange.id
        if event_stream:
            between = b"" if bytes(tail).endswith(EVENT_ENDS) else b"\n\n"  # half an event must not swallow ours
            await connection.end(between + dialect.error_event(cut))
        raise cut from error
    except asyncio.CancelledError:  # clients leave at the last event: who has that has it all
        exchange.completed = connection.left and not tail.unsent and _has_ended(vetting, bytes(tail))
        raise
    finally:
        hidden = hider.hidden if hider is not None else b""  # some tell it with their last words, asked or not
        exchange.usage = _spent(exchange, hidden or tail.head + bytes(tail))
    await connection.end()


def _has_ended(vetting: Vetting | None, tail: bytes) -> bool:
    """Whether a stream has said all, and that this was all."""
    return vetting is not None and vetting.finished and (vetting.said_last or tail.rstrip().endswith(b"[DONE]"))


def _is_complete(dialect: Dialect, vetting: Vetting | None, tail: bytes) -> bool:
    """Whether what ends a stream has come, whatever may have followed it."""
    return (vetting is not None and vetting.said_last) or dialect.is_complete(tail)


def _has_all(vetting: Vetting | None, tail: bytes) -> bool:
    """Whether no answer of several is missing its end."""
    return vetting is None or vetting.answers == 1 or vetting.finished or tail.rstrip().endswith(b"[DONE]")


def _only_the_farewell_is_missing(vetting: Vetting | None, error: Exception) -> bool:
    """Whether a stream broke after it had said all."""
    broke = isinstance(error, UpstreamError | UpstreamTimeout) and not isinstance(error, BadEvent)
    return broke and vetting is not None and vetting.finished


def _hides_usage(exchange: Exchange, reply: Reply) -> bool:
    attempt = exchange.attempts[-1] if exchange.attempts else None
    if attempt is None or attempt.request is None or attempt.asked is not exchange:
        return False
    resumes = exchange.model is not None and exchange.model.midstream == "resume"  # by one that tells it, perhaps
    hides = attempt.request.hides_usage or (resumes and not asks_for_usage(exchange.peek))
    return hides and reply.ok and reply.is_event_stream


async def comment(exchange: Exchange, text: bytes, connection: Connection) -> None:
    """See `Exchange.comment`."""
    if connection.status is None:
        exchange.inline_reason = "the stream began while the request waited"
        connection.events = True
        await connection.start(200, head(exchange, STREAM_HEADERS))
    await connection.send(b": " + text + b"\n\n")


class _Words(msgspec.Struct):
    message: str
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Said(msgspec.Struct):
    error: _Words


def told_late(reply: Reply) -> GatewayError:
    """What a backend said instead of a stream, when the stream has begun already: to be told as an event of it."""
    try:
        said = msgspec.json.decode(reply.content or b"", type=_Said).error
    except msgspec.MsgspecError:
        return UpstreamError("The backend did not answer with a stream.", status=reply.status)
    code = None if said.code is None else str(said.code)
    return GatewayError(said.message, status=reply.status, type=said.type, code=code, param=said.param)


def head(exchange: Exchange, headers: Headers) -> Headers:
    """The response headers: the backend's that may pass, the plugins', and the request's id.

    Raises:
        PluginFault: a plugin's header cannot be sent.
    """
    check_headers(exchange)
    named = next((value for name, value in headers if name == b"connection"), b"")  # RFC 9110, 7.6.1
    hop = frozenset(part.strip().lower() for part in named.split(b",")) if named else frozenset()
    kept = [
        (name, value)
        for name, value in headers
        if name not in NOT_OURS and name not in hop and not name.startswith(NOT_OURS_PREFIXES)
    ]
    own = [(REPORT, b"1")] if exchange.asks_for_report else []
    if exchange.dropped:
        own.append((DROPPED, ", ".join(told(exchange.dropped)).encode()))
    return [*kept, *exchange.response_headers, *own, (b"x-request-id", exchange.id.encode())]


_FIELD = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
MOST_TOLD = 32


def told(names: Sequence[str]) -> list[str]:
    """Names of fields as they can be told: a client may have made them up."""
    known = [name if _FIELD.fullmatch(name) else "?" for name in dict.fromkeys(names)]
    return known if len(known) <= MOST_TOLD else [*known[:MOST_TOLD], "..."]


_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2: a token."""
_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


_PLAIN = frozenset((bytes,))
MOST_KNOWN = 1000
_known: set[bytes] = set()
"""Names that can be sent; plugins have few."""


def check_headers(exchange: Exchange) -> None:
    """Whether what plugins add can be sent: all at once, for they are nearly always. Raises PluginFault."""
    headers = exchange.response_headers
    if not headers:
        return
    names, values = zip(*headers, strict=True)
    plain = _PLAIN.issuperset(map(type, names + values))
    if plain and _known.issuperset(names) and not _UNSENDABLE.search(b"".join(values)):
        return
    for name, value in headers:
        if not _is_sendable(name, value):
            headers.clear()  # the error's own answer goes out without them
            cause = ValueError(f"{name!r}: {value!r} cannot be sent: give plain bytes")
            raise PluginFault("headrace", "response_headers", cause)
    if len(_known) < MOST_KNOWN:
        _known.update(names)


def _is_sendable(name: object, value: object) -> bool:
    if not (isinstance(name, bytes) and isinstance(value, bytes)):
        return False
    return _NAME.fullmatch(name) is not None and _UNSENDABLE.search(value) is None
