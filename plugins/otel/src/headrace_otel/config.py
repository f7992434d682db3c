"""What `[plugins.otel]` may say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.config import Count, Positive, Secret, Strict


class OtelConfig(Strict, frozen=True):
    """`[plugins.otel]`. What is left out is taken from OpenTelemetry's environment variables where there is one."""

    endpoint: str | None = None
    """Where the collector takes OTLP over HTTP; `/v1/traces` and `/v1/metrics` are added. Else
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`, else
    `http://localhost:4318`."""
    headers: dict[str, Secret] = msgspec.field(default_factory=dict)
    """Sent with every export, a key for instance. Added to those of `OTEL_EXPORTER_OTLP_HEADERS`."""
    certificate: str | None = None
    """A file with the authorities to trust for an `https` collector; else `OTEL_EXPORTER_OTLP_CERTIFICATE`, else the
    system's. A certificate of our own: `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE` and `…_CLIENT_KEY`."""
    compression: Literal["none", "gzip"] | None = None
    """Of what is exported; else `OTEL_EXPORTER_OTLP_COMPRESSION`, else `none`."""
    timeout: Positive | None = None
    """Seconds that the collector may take for one export; else `OTEL_EXPORTER_OTLP_TIMEOUT`, else 10."""
    service_name: str | None = None
    """`service.name`; else `OTEL_SERVICE_NAME`, else `headrace`."""
    resource: dict[str, str] = msgspec.field(default_factory=dict)
    """More attributes of the resource, `"deployment.environment.name" = "production"` for instance; added to those of
    `OTEL_RESOURCE_ATTRIBUTES`."""
    traces: bool = True
    """Whether spans are exported. If not, `traceparent` is passed on as it comes."""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """The share of requests that is recorded. All of a request is, every try, or nothing."""
    trust_incoming: bool = False
    """Whether a client's `traceparent` decides instead: recorded if it says so, and not if it says not. The client's
    trace goes on either way; with false, its callers cannot make the gateway record, or keep it from that."""
    baggage: bool = False
    """Whether the client's `baggage` header is passed on to backends, untouched. For nginx to do so, too, set
    `[plugins.nginx] request_headers = ["baggage"]`."""
    export_interval: Positive = 1.0
    """Seconds for which spans are gathered before they are exported; much sooner when there are many."""
    metrics: bool = True
    """Whether metrics are exported."""
    metrics_interval: Positive = 60.0
    """Seconds between two exports of metrics."""
    tokens: bool = True
    """Whether backends are asked for token counts although nobody else needs them."""
    max_discovered: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 200
    """Models that backends have offered by themselves and that metrics count apart; all others are `_OTHER`."""
    queue_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = 8_388_608
    """Spans that wait for the collector may take this much memory; beyond it they are dropped, and counted."""
    shutdown_timeout: Annotated[float, msgspec.Meta(ge=0, le=60)] = 3.0
    """Seconds that the gateway's end may wait for what is still to be exported."""
    capture_content: bool = False
    """Also record what was asked and answered. The answers of recorded requests are then delivered by the core."""
    content_limit: Annotated[Count, msgspec.Meta(le=1_048_576)] = 4096
    """With `capture_content`: how many characters of what was asked, and of what was answered, are kept."""
    redact: list[str] = msgspec.field(default_factory=list)
    """With `capture_content`: more regular expressions (Python's `re`) whose matches become `[redacted]`. Keys, tokens
    and passwords that are known by their form do so anyway."""

    def __post_init__(self) -> None:
        for problem in (*endpoint_problems(self.endpoint), *self._somewhere(), *_headers(self.headers)):
            raise ValueError(problem)
        for pattern in self.redact:
            _check_pattern(pattern)

    def _somewhere(self) -> Iterator[str]:
        if not self.traces and not self.metrics:
            yield "traces and metrics are both false: nothing would be exported"
        if self.capture_content and not self.traces:
            yield "capture_content needs traces = true"


def endpoint_problems(endpoint: str | None) -> Iterator[str]:
    """What is wrong with the address of a collector."""
    if endpoint is None:
        return
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        yield "endpoint: is not a URL"
        return
    if url.scheme not in ("http", "https") or not url.hostname:
        yield "endpoint: is not a URL that begins with http:// or https://"
    elif url.username or url.password:
        yield "endpoint: has a user or a password in it: put them into headers"
    elif url.query or url.fragment:
        yield "endpoint: has a query or a fragment: give the address alone"
    elif port == 4317:
        yield "endpoint: 4317 is the port for gRPC, which is not spoken here: OTLP over HTTP is mostly at 4318"


def _headers(headers: dict[str, Secret]) -> Iterator[str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            yield f"headers: {name!r} is not the name of a header"
        text = value.reveal()
        if not text.isascii() or not text.isprintable():
            yield f"headers: the value of {name!r} cannot be sent: give printable ASCII"


def _check_pattern(pattern: str) -> None:
    from headrace.expressions import compiled

    try:
        compiled(pattern)
    except ValueError as error:
        raise ValueError(f"redact: {error}") from error
