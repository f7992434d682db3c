"""Who moves a reply's bytes: nginx wherever it can, the core wherever it must, and why."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from . import front as wire
from .delivery import check_headers
from .dialects import OPENAI
from .estimate import asked_tokens, choices
from .exchange import Attempt, DeliveryName, Exchange, Headers, Target
from .front import Front, lane_of
from .offload import Handover
from .pool import header_text
from .reporting import Seat, is_key
from .upstream import target_headers

if TYPE_CHECKING:
    from .connection import Connection
    from .gateway import Gateway
    from .models import Model

logger = logging.getLogger("headrace.delivery")

HANDOVERS = 4
"""How often one request may be handed over: nginx follows ten redirects, and each try takes two."""
NOTHING_NEEDS_IT = "nothing needs the reply's bytes"
_MORE = (wire.MORE, b"1")
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
        if not reason:
            _tell_once(exchange, NO_FRONT)
        return Choice("inline", reason or NO_FRONT)
    told = obstacle(attempt, gateway) or directions(attempt, seat.front)
    if not isinstance(told, str) and not seat.proven:
        exchange.asks_for_report = True
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
    return exchange.inline_reason or (_looked_after(exchange, model) if model is not None else "")


def _looked_after(exchange: Exchange, model: Model) -> str:
    """Why the core must see how this model's answers go; empty if it need not."""
    if model.midstream == "resume":
        return "a stream that breaks is resumed"
    if model.total is not None:
        return "the answer has a deadline"
    if model.longer and not _surely_fits(exchange, model.context_window or 0):
        return "the prompt may be too long for the backend"
    return ""


def _surely_fits(exchange: Exchange, window: int) -> bool:
    """A token is a byte at least."""
    return len(exchange.body) + asked_tokens(exchange) <= window


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
    if exchange.streaming and attempt.target.timeouts.first_token is not None:
        return "the first token has a deadline"
    if exchange.body_changed:
        return "a plugin changed the request's body"
    dialect = exchange.endpoint.dialect
    if (
        attempt.asked is not exchange
        or exchange.endpoint.name not in attempt.provider.native
        or not (dialect is OPENAI or getattr(dialect, "offloads", False))
    ):
        return "the backend speaks another dialect"
    if (
        request.method != "POST"
        or request.body is not attempt.built
        or not (request.edits or request.body is exchange.body)
    ):
        return "the request's body is not the client's"
    if sum(each.handed_over for each in exchange.attempts) >= HANDOVERS:
        return "nginx has been asked often enough"
    return ""


def directions(attempt: Attempt, front: Front) -> Headers | str:
    """What nginx is told, or why it cannot do it."""
    exchange, request = attempt.exchange, attempt.request
    assert request is not None
    dialect = exchange.endpoint.dialect
    if exchange.streaming and dialect is not OPENAI and dialect.name not in front.dialects:
        return "nginx does not know how streams of this dialect end"
    way = _way(attempt.target, front, request.url)
    if isinstance(way, str):
        return way
    sent = way.usual if request.has_usual_headers else _sent(exchange, request.headers, front)
    if isinstance(sent, str):
        return sent
    if request.set_headers:
        more = _named(request.set_headers, front)
        if isinstance(more, str):
            return more
        names = {name for name, _ in more}
        sent = [*(pair for pair in sent if pair[0] not in names), *more]
    if request.edits and (len(exchange.body) > front.edit_bytes or exchange.header(wire.SPOOLED)):
        return f"nginx edits bodies up to {front.edit_bytes} bytes"
    check_headers(exchange)
    for name, _ in exchange.response_headers:
        if name.decode("latin-1") not in front.response_headers:
            return f"nginx does not add the header {name.decode('latin-1')!r} to answers"
    watch = b"hide" if request.hides_usage else b"usage" if exchange.wants_usage else b"end" * exchange.streaming
    told: Headers = [*way.told, *sent, *exchange.response_headers]
    if exchange.response_headers or len(exchange.attempts) > 1:  # nginx still knows what was told at the last try
        told.append(_MORE)
    if watch:
        told.append((wire.WATCH, watch + _patience(attempt)))
    if request.edits:
        told.append((wire.EDITS, msgspec.json.encode(request.edits)))
    told.append((wire.REDIRECT, way.location + (b"_edited" if request.edits else b"_watched" if watch else b"")))
    return told


def _patience(attempt: Attempt) -> bytes:
    """How many answers a stream has, for how many milliseconds it may be silent, and how its end is known."""
    exchange = attempt.exchange
    if not exchange.streaming:
        return b""
    told = b" %d %d" % (choices(exchange), math.ceil(attempt.target.timeouts.idle * 1000))
    dialect = exchange.endpoint.dialect
    return told if dialect is OPENAI else told + b" " + dialect.name.encode()


class _Way(msgspec.Struct, frozen=True):
    """How nginx comes to one path of one backend."""

    location: bytes
    told: Headers
    usual: Headers | str
    """The headers it is told to send if no plugin has changed any, or why it cannot send them."""


_ways: dict[tuple[int, str, str], tuple[Target, _Way | str]] = {}
WAYS_KEPT = 4096


def forget_ways() -> None:
    """What was worked out for backends that may be gone: a configuration is over."""
    _ways.clear()


def _way(target: Target, front: Front, url: str) -> _Way | str:
    """Worked out once per backend and path."""
    known = _ways.get((id(target), front.mark, url))
    if known is None or known[0] is not target:
        if len(_ways) >= WAYS_KEPT:
            _ways.clear()
        known = _ways[id(target), front.mark, url] = (target, _find_way(target, front, url))
    return known[1]


def _find_way(target: Target, front: Front, url: str) -> _Way | str:
    lane = lane_of(target)
    if lane is None:
        return "the backend is reached through a proxy"
    if lane.key not in front.lanes:
        return "nginx does not know this backend"
    asked = urlsplit(url)
    if (asked.scheme, asked.netloc) != urlsplit(target.base_url)[:2]:
        return "the request goes to another address than the backend's"
    path = asked.path + (f"?{asked.query}" if asked.query else "")
    if not path.isascii() or not path.isprintable() or " " in path:
        return "nginx cannot ask for this path"
    told = [(wire.GROUP, lane.group), (wire.HOST, lane.host), (wire.URI, path), (b"content-length", "0")]
    usual = _named(target_headers(target), front)
    return _Way(lane.location.encode(), [(name, value.encode()) for name, value in told], usual)


def _named(headers: Mapping[str, str], front: Front) -> Headers | str:
    """Headers as nginx is told them."""
    told: Headers = []
    for title, value in headers.items():
        name = title.lower()
        if not value or not value.isprintable():
            return f"nginx does not send the header {title!r} as it is"
        if name == "authorization":
            told.append((wire.AUTHORIZATION, header_text(value).encode()))
        elif name in front.request_headers or name in wire.FORWARDED:
            told += [(wire.REQUEST_HEADER + name.encode(), header_text(value).encode()), _MORE]
        elif (name, value) != ("accept-encoding", "identity"):
            return f"nginx does not send the header {title!r}"
    return told


def _sent(exchange: Exchange, headers: Mapping[str, str], front: Front) -> Headers | str:
    """The headers that nginx would not send by itself, if a plugin may have changed them."""
    given = {name: value for name in wire.FORWARDED if (value := exchange.header(name.encode())) is not None}
    asked = {title.lower() for title in headers}
    removed = next((name for name in given if name not in asked), None)
    if removed is not None:
        return f"a plugin removed the header {removed!r}"
    usual = {"content-type": "application/json", **given, "x-request-id": exchange.id}
    return _named({title: value for title, value in headers.items() if usual.get(title.lower()) != value}, front)
