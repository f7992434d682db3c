"""The collector: where it is and how it is spoken to, from the configuration and OpenTelemetry's environment variables.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from opentelemetry.util.re import parse_env_headers

from headrace.errors import PluginError

from .config import endpoint_problems

if TYPE_CHECKING:
    from .config import OtelConfig

DEFAULT = "http://localhost:4318"
PREFIX = "OTEL_EXPORTER_OTLP_"
MILLISECONDS = 1000.0
"""From here on a timeout is one: the specification counts them, OpenTelemetry's own libraries for Python seconds."""
Signal = Literal["traces", "metrics"]


class Collector(msgspec.Struct, frozen=True):
    """How one signal is exported."""

    url: str
    headers: dict[str, str]
    timeout: float
    gzip: bool
    authorities: str | None
    certificate: str | None
    key: str | None


def collectors(config: OtelConfig) -> dict[Signal, Collector]:
    """Of the signals that are exported. Raises PluginError, as `collector` does."""
    wanted: dict[Signal, bool] = {"traces": config.traces, "metrics": config.metrics}
    return {signal: collector(config, signal) for signal, exported in wanted.items() if exported}


def collector(config: OtelConfig, signal: Signal) -> Collector:
    """Raises PluginError: a variable of the environment is wrong, a file is not there."""
    protocol = _variable("PROTOCOL", signal) or "http/protobuf"
    if protocol != "http/protobuf":
        raise PluginError("otel", f"{PREFIX}PROTOCOL: {protocol!r} is not spoken here, only http/protobuf")
    compression = config.compression or _variable("COMPRESSION", signal) or "none"
    if compression not in ("none", "gzip"):
        raise PluginError("otel", f"{PREFIX}COMPRESSION: {compression!r} is neither none nor gzip")
    return Collector(
        url=_url(config.endpoint, signal),
        headers=_headers(config, signal, gzip=compression == "gzip"),
        timeout=config.timeout or _timeout(_variable("TIMEOUT", signal)),
        gzip=compression == "gzip",
        authorities=_file(config.certificate or _variable("CERTIFICATE", signal)),
        certificate=_file(_variable("CLIENT_CERTIFICATE", signal)),
        key=_file(_variable("CLIENT_KEY", signal)),
    )


def _variable(name: str, signal: Signal) -> str | None:
    """Of this signal, or of all; empty is as good as not set."""
    return os.environ.get(f"{PREFIX}{signal.upper()}_{name}") or os.environ.get(PREFIX + name) or None


def _url(endpoint: str | None, signal: Signal) -> str:
    own = os.environ.get(f"{PREFIX}{signal.upper()}_ENDPOINT")
    base = endpoint or os.environ.get(f"{PREFIX}ENDPOINT") or DEFAULT
    url = own if own and not endpoint else f"{base.removesuffix('/')}/v1/{signal}"
    for problem in endpoint_problems(url):
        raise PluginError("otel", f"{PREFIX}ENDPOINT: {problem.removeprefix('endpoint: ')}")
    return url


def _headers(config: OtelConfig, signal: Signal, *, gzip: bool) -> dict[str, str]:
    given = parse_env_headers(_variable("HEADERS", signal) or "", liberal=True)
    own = {name.lower(): value.reveal() for name, value in config.headers.items()}
    encoding = {"content-encoding": "gzip"} if gzip else {}
    return {"user-agent": "headrace-otel", **given, **own, "content-type": "application/x-protobuf", **encoding}


def _timeout(text: str | None) -> float:
    """Seconds."""
    try:
        number = float(text or 10.0)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise PluginError("otel", f"{PREFIX}TIMEOUT: {text!r} is not a number above 0")
    return number / 1000 if number >= MILLISECONDS else number


def _file(path: str | None) -> str | None:
    if path is not None and not Path(path).is_file():
        raise PluginError("otel", f"the certificate or key {path} is not there")
    return path
