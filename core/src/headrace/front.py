"""What the core and the nginx in front of it have agreed on: names of headers, and which backends nginx can reach.

Whoever renders nginx's configuration writes a `Front` beside it; the core reads it when nginx shows its mark. Both
name things by what they are, so that a core with another configuration never sends nginx to the wrong backend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from .exchange import Target

FRONT_FILE = "front.json"
"""In the gateway's runtime directory."""
AGAIN_PATH = "/.headrace/again"
"""Where nginx asks what to do next when a backend failed before its first byte."""

# What nginx says of a request.
MARK = b"x-headrace-mark"
"""The secret that only our nginx knows, a space, and the process id of its worker."""
EXCHANGE = b"x-headrace-exchange"
"""nginx's own id of the request."""
SPOOLED = b"x-headrace-spooled"
"""The file that holds the body, which is large or came in many small chunks: nginx's script cannot edit it."""
FAILED = b"x-headrace-failed"
"""How the backend failed: `$upstream_status|$upstream_connect_time|$upstream_header_time`."""
RETRY_AFTER = b"x-headrace-retry-after"

# What the core says to nginx.
REDIRECT = b"x-accel-redirect"
GROUP = b"x-headrace-group"
URI = b"x-headrace-uri"
HOST = b"x-headrace-host"
AUTHORIZATION = b"x-headrace-authorization"
EDITS = b"x-headrace-edits"
REPORT = b"x-headrace-report"
"""Asks for a report of an answer that nginx does not deliver, to see that its reports arrive."""
WATCH = b"x-headrace-watch"
"""What the reply is watched for: `usage`, `hide` (usage the client did not ask for), or `end` alone. For a stream
followed by how many answers it has, for how many milliseconds it may be silent, and its dialect if not OpenAI's."""
MORE = b"x-headrace-more"
"""Says that headers of the next kind are given, or such as are added to the answer: else nginx looks for none."""
REQUEST_HEADER = b"x-headrace-send-"
"""Begins the name of a header that is sent to the backend."""

FORWARDED = (
    *("accept", "anthropic-beta", "anthropic-version", "content-type", "openai-beta", "traceparent", "tracestate"),
    "user-agent",
)
"""The client's own headers that nginx sends on by itself."""
CARRIED = (
    "access-control-allow-credentials",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "retry-after",
    "vary",
    "x-cache",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)
"""Response headers of ours that nginx adds to a backend's answer; one with another name is sent by the core itself."""


class Lane(msgspec.Struct, frozen=True):
    """How nginx asks one backend. Equal lanes of several targets are one."""

    tls: bool
    address: str
    """`host:port`, or `unix:PATH`."""
    host: str
    """What the backend is called in `Host` and TLS."""
    verify: bool | str
    connect: float
    read: float
    keep_alive: float
    max_connections: int

    @property
    def group(self) -> str:
        """The name of the `upstream` block."""
        checked = (self.verify, self.host) if self.tls else ()  # a connection is reused for whom it was opened for
        return f"headrace_{_digest(self.address, self.max_connections, self.keep_alive, *checked)}"

    @property
    def location(self) -> str:
        """The name of the location; backends that differ in their address alone share it."""
        return f"@headrace_{_digest(self.tls, self.verify, self.connect, self.read)}"

    @property
    def key(self) -> str:
        return f"{self.group} {self.location}"


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:12]


def lane_of(target: Target) -> Lane | None:
    """The lane of a target; None if nginx cannot reach it: there is a proxy in between."""
    if target.proxy is not None:
        return None
    url = urlsplit(target.base_url)
    tls = url.scheme == "https" and target.socket is None
    port = url.port or (443 if tls else 80)
    name = f"[{url.hostname}]" if ":" in (url.hostname or "") else str(url.hostname)
    return Lane(
        tls=tls,
        address=f"unix:{target.socket}" if target.socket else f"{name}:{port}",
        host=url.netloc,
        verify=target.verify,
        connect=target.timeouts.connect,
        read=max(target.timeouts.first_byte, target.timeouts.idle),
        keep_alive=target.timeouts.keep_alive,
        max_connections=target.max_connections,
    )


class Front(msgspec.Struct, frozen=True):
    """What the running nginx can do for the core."""

    mark: str
    lanes: frozenset[str]
    """The keys of those that are rendered."""
    edit_bytes: int
    """The largest body that nginx can edit."""
    reports: tuple[str, ...]
    """Where it reports to, worker by worker: `unix:PATH` or `HOST:PORT`, datagrams."""
    request_headers: frozenset[str] = frozenset()
    """More headers that it can send to a backend, besides the client's own and the key."""
    response_headers: frozenset[str] = frozenset(CARRIED)
    """Headers that it can add to a backend's answer."""
    dialects: frozenset[str] = frozenset()
    """Names of those, besides OpenAI's, whose streams it can look after."""


def write(path: Path, front: Front) -> None:
    """Put it where the core looks. Nobody else may read it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_bytes(msgspec.json.encode(front))
    temporary.replace(path)


def read(path: Path) -> Front | None:
    """None if there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Front)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def lanes_of(targets: Iterable[Target]) -> dict[str, Lane]:
    """By target's name, those that nginx can be sent to."""
    return {target.name: lane for target in targets if (lane := lane_of(target)) is not None}
