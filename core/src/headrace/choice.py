"""Who moves a reply's bytes: nginx wherever it can, the core wherever it must, and why."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from . import front as wire
from .dialects import OPENAI
from .exchange import Attempt, DeliveryName, Exchange, Headers, Target
from .front import Front, lane_of
from .offload import Handover
from .reporting import Seat, is_key

if TYPE_CHECKING:
    from .connection import Connection
    from .gateway import Gateway

logger = logging.getLogger("headrace.delivery")

HANDOVERS = 4
"""How often one request may be handed over: nginx follows ten redirects, and each try takes two."""
NOTHING_NEEDS_IT = "nothing needs the reply's bytes"
NO_FRONT = "the request did not come through our nginx"
UNPROVEN = "nginx has not sent a report yet"


class Choice(msgspec.Struct, frozen=True):
    """Which delivery, and why: the words appear in the log line and in `headrace explain`."""

    delivery: DeliveryName
    reason: str
    handover: Handover | None = None


def choose(attempt: Attempt, gateway: Gateway, connection: Connection) -> Choice:
    """Decide how the answer to one try will be delivered. The try is built and prepared."""
    exchange = attempt.exchange
    reason = unwanted(exchange, gateway)
    seat = None if reason else _seat(exchange, gateway, connection)
    if seat is None:
        return Choice("inline", reason or NO_FRONT)
    told = obstacle(attempt, gateway) or directions(attempt, seat.front)
    if not isinstance(told, str) and not seat.proven:
        exchange.response_headers.append((wire.REPORT, b"1"))
        told = UNPROVEN
    if isinstance(told, str):
        _tell_once(exchange, told)
        return Choice("inline", told)
    key = exchange.header(wire.EXCHANGE) or ""
    return Choice("offload", NOTHING_NEEDS_IT, Handover(key, seat.pid, told))


def unwanted(exchange: Exchange, gateway: Gateway) -> str:
    """Why nobody wants nginx to deliver; empty if somebody does."""
    model = exchange.model
    if (model.delivery if model else gateway.config.server.delivery) == "inline":
        return "configured"
    return exchange.inline_reason


def _seat(exchange: Exchange, gateway: Gateway, connection: Connection) -> Seat | None:
    """The nginx worker that the request came through: over our own socket, with its mark."""
    mark = exchange.header(wire.MARK)
    if not mark or connection.scope.get("client") is not None or not is_key(exchange.header(wire.EXCHANGE)):
        return None
    return gateway.reporting.seat(mark.encode("latin-1"))


def _tell_once(exchange: Exchange, reason: str) -> None:
    if exchange.model is not None and exchange.model.delivery == "offload" and reason != UNPROVEN:
        _warn(exchange.model.name, reason)


@lru_cache(maxsize=256)
def _warn(model: str, reason: str) -> None:
    logger.warning('model %r has delivery = "offload", but the core delivers: %s', model, reason)


def obstacle(attempt: Attempt, gateway: Gateway) -> str:
    """Why the core must deliver, wherever the request came from; empty if it need not."""
    exchange, request = attempt.exchange, attempt.request
    assert request is not None
    if gateway.reply_changer:
        return gateway.reply_changer
    if exchange.taps is not None and exchange.taps.watcher:
        return f"the plugin {exchange.taps.watcher!r} watches the reply"
    if exchange.body_changed:
        return "a plugin changed the request's body"
    if exchange.endpoint.name not in attempt.provider.native or exchange.endpoint.dialect is not OPENAI:
        return "the backend speaks another dialect"
    if request.body is not attempt.built or not (request.edits or request.body is exchange.body):
        return "the request's body is not the client's"
    if sum(each.request is not None and each.handed_over for each in exchange.attempts) >= HANDOVERS:
        return "nginx has been asked often enough"
    return ""


def directions(attempt: Attempt, front: Front) -> Headers | str:
    """What nginx is told, or why it cannot do it."""
    exchange, request = attempt.exchange, attempt.request
    assert request is not None
    if request.edits and len(exchange.body) > front.edit_bytes:
        return f"nginx edits bodies up to {front.edit_bytes} bytes"
    for name, _ in exchange.response_headers:
        if name.decode("latin-1") not in front.response_headers:
            return f"nginx does not add the header {name.decode('latin-1')!r} to answers"
    way = _way(attempt.target, front, request.url)
    sent = _sent(exchange, request.headers, front)
    if isinstance(way, str) or isinstance(sent, str):
        return way if isinstance(way, str) else str(sent)
    watch = b"hide" if request.hides_usage else b"usage" if exchange.wants_usage else b"end" * exchange.streaming
    suffix = b"_edited" if request.edits else b"_watched" if watch else b""
    location, *rest = way
    extra: Headers = [(wire.WATCH, watch)] if watch else []
    if request.edits:
        extra.append((wire.EDITS, msgspec.json.encode(request.edits)))
    return [(wire.REDIRECT, location + suffix), *rest, *sent, *extra, *exchange.response_headers, _EMPTY]


_EMPTY = (b"content-length", b"0")


def _way(target: Target, front: Front, url: str) -> Any:
    """Which location, group, host and path: worked out once per backend and path."""
    known = _WAYS.get((target.name, front.mark, url))
    if known is None or known[0] is not target:
        if len(_WAYS) > 4096:
            _WAYS.clear()
        known = _WAYS[target.name, front.mark, url] = (target, _find_way(target, front, url))
    return known[1]


_WAYS: dict[tuple[str, str, str], tuple[Target, Any]] = {}


def _find_way(target: Target, front: Front, url: str) -> Any:
    lane = lane_of(target)
    if lane is None:
        return "the backend is reached through a proxy"
    if lane.key not in front.lanes:
        return "nginx does not know this backend"
    path = urlsplit(url).path
    if not path.isascii() or not path.isprintable() or " " in path:
        return "nginx cannot ask for this path"
    return (
        lane.location.encode(),
        (wire.GROUP, lane.group.encode()),
        (wire.HOST, lane.host.encode()),
        (wire.URI, path.encode()),
    )


def _sent(exchange: Exchange, headers: dict[str, str], front: Front) -> Headers | str:
    """The headers that nginx would not send by itself."""
    sent: Headers = []
    missing = {name for name in wire.FORWARDED if exchange.header(name.encode()) is not None}
    for title, value in headers.items():
        name = title.lower()
        missing.discard(name)
        if name in wire.FORWARDED:
            if value == (exchange.header(name.encode()) or ("application/json" if name == "content-type" else None)):
                continue
        elif name == "authorization":
            sent.append((wire.AUTHORIZATION, value.encode("latin-1")))
            continue
        elif (name, value) in (("accept-encoding", "identity"), ("x-request-id", exchange.id)):
            continue
        elif name not in front.request_headers:
            return f"nginx does not send the header {title!r}"
        sent.append((wire.REQUEST_HEADER + name.encode(), value.encode("latin-1")))
    return f"a plugin removed the header {missing.pop()!r}" if missing else sent
