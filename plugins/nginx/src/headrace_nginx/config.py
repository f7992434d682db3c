"""What `[plugins.nginx]` may say."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Strict

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Level = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]

HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
"""Names that nginx and a certificate can both carry; nginx's regular expressions are not among them."""


HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
"""Names that nginx can make variables of."""


class ThrottleConfig(Strict, frozen=True):
    """`[plugins.nginx.throttle]`: refuse floods before they reach Python. Everything is off until it is set."""

    requests_per_minute: Count | None = None
    """Requests one API key may make in a minute, evenly spread; what comes without a key counts by its address."""
    burst: NotNegative = 20
    """Requests a key may be ahead of that rate; they are let through at once, what exceeds them is answered 429."""
    address_requests_per_minute: Count | None = None
    """The same by client address, whatever the key: a limit on guessing keys."""
    address_burst: NotNegative = 100
    """Requests an address may be ahead of its rate."""
    connections_per_key: Count | None = None
    """Requests one key may have open at the same time; a stream is open until its last byte."""
    connections_per_address: Count | None = None
    """Requests one client address may have open at the same time."""
    memory_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 10_485_760
    """Shared memory for each of these limits; 10 MiB hold about 80,000 keys or addresses."""


class NginxConfig(Strict, frozen=True):
    """`[plugins.nginx]`."""

    address: str = "127.0.0.1"
    """The IP address to listen on; `0.0.0.0` is every IPv4 address of the machine, `::` every IPv6 address."""
    port: Port = 8443
    """The port to listen on."""
    redirect_port: Port | None = None
    """A port for plain HTTP whose only answer is a redirect to HTTPS."""
    server_name: tuple[str, ...] = ("localhost",)
    """The host names clients use; the first one is announced and all stand in the development certificate."""
    module: bool = True
    """Whether to use Headrace's own nginx module, where `headrace nginx build` has made it: it looks at replies as the
    script does, at a fraction of the cost and in a fixed amount of memory."""
    tls: bool = True
    """Whether to speak TLS; false serves plain HTTP/1.1, for instance behind a load balancer that ends TLS."""
    certificate: str | None = None
    """Path of the certificate with its chain (PEM); left out, a development certificate is made in `state_dir/tls`."""
    certificate_key: str | None = None
    """Path of the certificate's private key (PEM)."""
    http2: bool = True
    """Whether to offer HTTP/2 over TLS."""
    hsts_seconds: NotNegative = 31_536_000
    """Seconds for which browsers shall insist on HTTPS; sent with a `certificate` only, and not at all if 0."""
    binary: str | None = None
    """Path of the nginx to run; left out, the system's, else the one that `headrace nginx fetch` installed."""
    required: bool = False
    """Whether the gateway refuses to start when no nginx can be run; false serves without TLS then, and says so."""
    workers: Count | None = None
    """nginx worker processes; left out, one per CPU core."""
    worker_connections: Annotated[int, msgspec.Meta(ge=16)] = 4096
    """Connections per worker; each open request takes two."""
    max_body_bytes: Count | None = None
    """The largest request body; left out, `server.max_body_bytes`."""
    client_header_timeout: Positive = 15.0
    """Seconds a client may take to send its request's head."""
    client_body_timeout: Positive = 30.0
    """Seconds a client may pause while it sends its body."""
    send_timeout: Positive = 60.0
    """Seconds a client may pause while it takes the answer."""
    keepalive_timeout: Positive = 75.0
    """Seconds an idle client connection stays open."""
    read_timeout: Positive | None = None
    """Seconds the core may be silent before nginx answers 504; left out, longer than the backends' own timeouts."""
    access_log: str = "access.log"
    """A file in `state_dir/log`, an absolute path (`/dev/stdout`), or `off`. A JSON object a line, without secrets."""
    error_log: str = "error.log"
    """A file in `state_dir/log`, an absolute path (`/dev/stderr`), or `off`."""
    error_log_level: Level = "warn"
    """The least severe messages that nginx's error log takes."""
    log_request_errors: bool = False
    """Whether single requests may appear in the error log; nginx writes their query strings there, secrets included."""
    request_headers: tuple[str, ...] = ()
    """More headers that plugins set on requests to backends (hook `prepare_attempt`) and that nginx shall be able to
    send: with any other, the core asks the backend itself."""
    response_headers: tuple[str, ...] = ()
    """More headers that plugins add to answers and that nginx shall be able to add: with any other, the core delivers
    the answer itself."""
    throttle: ThrottleConfig = ThrottleConfig()
    """Limits per key and per address."""

    def __post_init__(self) -> None:
        _check_address(self.address)
        _check_names(self.server_name)
        _check_headers("request_headers", self.request_headers)
        _check_headers("response_headers", self.response_headers)
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key belong together: give both or neither")
        if self.certificate is not None and not self.tls:
            raise ValueError("a certificate is given but tls is false: remove one of the two")
        if self.redirect_port is not None and not self.tls:
            raise ValueError("redirect_port leads to HTTPS, but tls is false: remove one of the two")
        if self.redirect_port == self.port:
            raise ValueError("redirect_port must differ from port")
        # What stands in paths is checked here as well, so that `headrace config check` tells of it.
        from .quoting import check_text

        for key in ("certificate", "certificate_key", "binary", "access_log", "error_log"):
            value = getattr(self, key)
            if value is not None:
                check_text(value, key)


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"address {address!r} is not an IP address: write 127.0.0.1, 0.0.0.0 or ::1") from None
    if "%" in address:
        raise ValueError("address must not carry a zone (%…)")


def is_header_name(name: str) -> bool:
    """Whether nginx can make a variable of it."""
    return HEADER_NAME.fullmatch(name) is not None


def _check_headers(key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not is_header_name(name):
            raise ValueError(f"{key}: {name!r} is not the name of a header (letters, digits and dashes, at most 64)")


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("server_name needs at least one name")
    for name in names:
        if not HOST_NAME.fullmatch(name) or len(name) > 253:
            raise ValueError(f"server_name: {name!r} is not a host name")
