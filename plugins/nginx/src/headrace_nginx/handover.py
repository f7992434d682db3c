"""What nginx can do for the core on this machine: the backends it reaches, and where it reports to."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace import front
from headrace.front import Front, Lane

from .binary import Platform
from .config import is_header_name
from .layout import Layout
from .speaking import Spoken

if TYPE_CHECKING:
    from headrace.gateway import Gateway

logger = logging.getLogger("headrace.nginx")

EDIT_BYTES = 131_072
"""Bodies up to this size stay in nginx's memory, where its script can edit them."""
OLDEST = (1, 20, 0)
"""The first nginx that the rendered configuration was written for."""
NEVER_SENT = frozenset(
    (
        *("accept-encoding", "authorization", "connection", "content-length", "expect", "host", "keep-alive", "te"),
        *("trailer", "transfer-encoding", "upgrade", "x-request-id"),
    )
)
"""Headers of requests that are not the configuration's to set, or are sent anyway."""
QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
ENOUGH_DATAGRAMS = 256
"""How many reports must be able to wait. Containers let ten wait at a unix socket: then UDP over loopback is used."""


class Handover(msgspec.Struct, frozen=True):
    """What is rendered so that the core can hand requests over."""

    lanes: tuple[Lane, ...]
    reports: tuple[str, ...]
    request_headers: tuple[str, ...]
    """Names in lower case, besides those that are always sent."""
    response_headers: tuple[str, ...]
    spoken: tuple[Spoken, ...] = ()
    """Dialects besides OpenAI's whose streams it looks after."""

    @property
    def digest(self) -> str:
        """Differs for handovers that differ."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]

    def front(self, mark: str) -> Front:
        """The same, as the core reads it."""
        return Front(
            mark=mark,
            lanes=frozenset(lane.key for lane in self.lanes),
            edit_bytes=EDIT_BYTES,
            reports=self.reports,
            request_headers=frozenset(self.request_headers),
            response_headers=frozenset(self.response_headers),
            dialects=frozenset(each.name for each in self.spoken),
        )


def why_not(platform: Platform) -> str:
    """Why this nginx cannot deliver answers itself; empty if it can."""
    if platform.njs is None:
        return "this nginx has no njs (Debian: apt install libnginx-mod-http-js)"
    if platform.version < OLDEST:
        return f"this nginx is older than {'.'.join(map(str, OLDEST))}"
    return ""


def wanted(gateway: Gateway) -> bool:
    """Whether any model's answers may be delivered by nginx."""
    return any(model.delivery != "inline" for model in gateway.models)


def plan(
    gateway: Gateway,
    reports: Sequence[str],
    lanes: Iterable[Lane],
    more: tuple[Sequence[str], Sequence[str]],
    spoken: Iterable[Spoken] = (),
) -> Handover:
    """What to render. `more` are the names of request and response headers of the configuration."""
    targets = [target for model in gateway.models for target in model.targets]
    own = {name.lower() for target in targets for name in target.headers if is_header_name(name)}
    own |= {name.lower() for name in more[0]}
    return Handover(
        lanes=tuple(lanes),
        reports=tuple(reports),
        request_headers=tuple(sorted(own - {*front.FORWARDED, *NEVER_SENT})),
        response_headers=tuple(sorted({*front.CARRIED, *(name.lower() for name in more[1])})),
        spoken=tuple(spoken),
    )


def lanes(gateway: Gateway, *, resolved: bool) -> list[Lane]:
    """The lanes of all models, each once. With `resolved`, those alone whose host names mean something here: nginx
    does not start with one that does not."""
    targets = [target for model in gateway.models if model.delivery != "inline" for target in model.targets]
    found = dict.fromkeys(lane for target in targets if (lane := front.lane_of(target)) is not None)
    possible = [lane for lane in found if _is_possible(lane)]
    usable = [lane for lane in possible if not resolved or _resolves(lane)]
    for lane in possible:
        if lane not in usable:
            logger.warning("%s cannot be resolved: the core asks it itself until nginx is reloaded", lane.host)
    return usable


def _is_possible(lane: Lane) -> bool:
    """Whether nginx can ask it as the core would. It knows no IDNA, no directories of authorities, and compares the
    names in certificates alone, never the addresses."""
    if not lane.address.isascii() or (isinstance(lane.verify, str) and Path(lane.verify).is_dir()):
        return False
    return not (lane.tls and lane.verify is not False and _is_address(lane))


def _is_address(lane: Lane) -> bool:
    try:
        ipaddress.ip_address(lane.address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


def _resolves(lane: Lane) -> bool:
    if lane.address.startswith("unix:"):
        return True
    host, _, port = lane.address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return True


def portable(gateway: Gateway, layout: Layout, more: tuple[Sequence[str], Sequence[str]]) -> Handover | None:
    """The handover that is the same on every machine."""
    here, there = str(gateway.runtime_dir), str(layout.socket.parent)
    found = [
        msgspec.structs.replace(lane, address=lane.address.replace(here, there, 1))
        for lane in lanes(gateway, resolved=False)
    ]
    return plan(gateway, portable_reports(layout, gateway.config.server.workers), found, more) if found else None


def portable_reports(layout: Layout, workers: int) -> list[str]:
    """Unix sockets beside the core's."""
    return [f"unix:{layout.reports(number)}" for number in range(workers)]


def report_addresses(layout: Layout, workers: int, before: Front | None) -> list[str]:
    """Where reports go: unix sockets where enough of them can wait, else ports of the loopback, free ones or those of
    the front `before`."""
    if _queue_length() >= ENOUGH_DATAGRAMS and "," not in str(layout.socket):
        return portable_reports(layout, workers)
    kept = [each for each in before.reports if not each.startswith("unix:")][:workers] if before is not None else []
    return [*kept, *(_free_port() for _ in range(workers - len(kept)))]


def _queue_length() -> int:
    try:
        return int(QUEUE.read_text())
    except (OSError, ValueError):
        return 0


def _free_port() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def new_secret() -> str:
    """What nobody can guess."""
    return secrets.token_hex(24)
