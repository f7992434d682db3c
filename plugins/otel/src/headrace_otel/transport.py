"""One export over HTTP, and what came of it."""

from __future__ import annotations

import gzip
import time
from email.utils import parsedate_to_datetime

import msgspec
import urllib3
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from .collector import Collector

AGAIN = frozenset((408, 429, 500, 502, 503, 504))
"""Statuses after which the same may be taken later. OTLP names 429, 502, 503 and 504; restarts say the other two."""
ANSWER_LIMIT = 65_536
"""Bytes of an answer that are read."""
PATIENCE = 60.0
"""Seconds that a collector may ask us to wait."""
GZIP_LEVEL = 1


class Problem(msgspec.Struct, frozen=True):
    """Why an export was not taken."""

    reason: str
    """For the log: nothing of what was sent, nor of what the collector said."""
    again: bool
    """Whether it may be taken later."""
    wait: float = 0.0
    """Seconds that the collector asks us to wait."""
    broke: bool = False
    """Whether the connection broke: the collector may have closed one that was kept."""


class Taken(msgspec.Struct, frozen=True):
    """The collector has it, all but so many of the items."""

    rejected: int = 0


class Transport:
    """Speaks to one collector, over one connection. For one thread."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=collector.authorities,
            cert_file=collector.certificate,
            key_file=collector.key,
        )

    def post(self, data: bytes, seconds: float) -> Taken | Problem:
        """Export an encoded request, within so many seconds for each step of it. Raises nothing."""
        if self._collector.gzip:
            data = gzip.compress(data, GZIP_LEVEL)
        try:
            return self._post(data, urllib3.Timeout(connect=seconds, read=seconds))
        except HTTPError as error:
            return Problem(_named(error, seconds), again=True, broke=isinstance(error, ProtocolError))
        except OSError as error:  # a certificate that cannot be read, for instance
            return Problem(f"{type(error).__name__}: {error.strerror}", again=True)

    def _post(self, data: bytes, timeout: urllib3.Timeout) -> Taken | Problem:
        answer = self._pool.request(
            "POST",
            self._collector.url,
            body=data,
            headers=self._collector.headers,
            timeout=timeout,
            redirect=False,
            preload_content=False,
        )
        try:
            said = answer.read(ANSWER_LIMIT, decode_content=True)
            if answer.read(1):
                answer.close()  # whatever it goes on with
        finally:
            answer.release_conn()
        if 200 <= answer.status < 300:
            return Taken(_rejected(said))
        wait = _patience(answer.headers.get("retry-after"))
        return Problem(f"it answered with status {answer.status}", answer.status in AGAIN, wait)

    def close(self) -> None:
        self._pool.clear()


def _rejected(said: bytes) -> int:
    """How many spans the collector took out; its answers for metrics have the same form."""
    try:
        return int(ExportTraceServiceResponse.FromString(said).partial_success.rejected_spans)
    except Exception:
        return 0  # no protobuf: some answer in JSON, or with a page


def _patience(said: str | None) -> float:
    """Seconds, of a header `Retry-After`."""
    if said is None:
        return 0.0
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(0.0, seconds), PATIENCE)


def _named(error: HTTPError, seconds: float) -> str:
    """What went wrong, without addresses."""
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return f"no connection could be had in {seconds:g} s"
    if isinstance(error, NewConnectionError):
        return "it cannot be reached"
    if isinstance(error, ReadTimeoutError):
        return f"it did not answer in {seconds:g} s"
    if isinstance(error, SSLError):
        return "TLS failed: is its certificate trusted?"
    return f"the connection broke ({type(error).__name__})"
