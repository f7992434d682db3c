"""Gateways that export, and a collector that really decodes what it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from headrace import hookimpl
from headrace.errors import RateLimited
from headrace.exchange import Exchange, Principal
from headrace.testing import FakeBackend, Running, free_port, serve
from headrace_otel import Plugin

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


class Span(NamedTuple):
    """A span as it came: ids in hexadecimal, attributes as plain values."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    start: int
    end: int
    flags: int


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def span(sent: Any) -> Span:
    kind = {2: "server", 3: "client"}[sent.kind]
    ids = sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex()
    times = sent.start_time_unix_nano, sent.end_time_unix_nano
    return Span(sent.name, kind, *ids, values(sent.attributes), sent.status.code == 2, *times, sent.flags)


class Collector:
    """Takes OTLP over HTTP.

    Attributes:
        mood: `takes`, or one of `hangs`, `closes`, `closes once`, a status, and `rejects` (a span of each export).
        resources, spans, metrics: what has come, decoded; of metrics, the last of each name.
        headers: of every export.
        exports: how many were asked to be taken.
    """

    def __init__(self) -> None:
        self.mood: str | int = "takes"
        self.wait = ""
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []
        self.metrics: dict[str, Any] = {}
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.exports = 0
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *arguments: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        self.exports += 1
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.mood == "hangs":
            self.released.wait(30)
        if self.mood in ("hangs", "closes", "closes once"):
            self.mood = "takes" if self.mood == "closes once" else self.mood
            request.close_connection = True
            return
        if isinstance(self.mood, int):
            self.reply(request, self.mood)
            return
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        self.take(request.path, body)
        said = ExportTraceServiceResponse()
        if self.mood == "rejects":
            said.partial_success.CopyFrom(ExportTracePartialSuccess(rejected_spans=1, error_message="no"))
        self.reply(request, 200, said.SerializeToString())

    def reply(self, request: BaseHTTPRequestHandler, status: int, body: bytes = b"") -> None:
        request.send_response(status)
        request.send_header("content-length", str(len(body)))
        if self.wait and status != 200:
            request.send_header("retry-after", self.wait)
        request.end_headers()
        request.wfile.write(body)

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/metrics":
            for about in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.resources.append(values(about.resource.attributes))
                self.metrics |= {metric.name: metric for scope in about.scope_metrics for metric in scope.metrics}
            return
        assert path == "/v1/traces", path
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(sent.resource.attributes))
            self.spans += [span(each) for scope in sent.scope_spans for each in scope.spans]

    def server_spans(self) -> list[Span]:
        return [each for each in self.spans if each.kind == "server"]

    def client_spans(self) -> list[Span]:
        return [each for each in self.spans if each.kind == "client"]

    def points(self, name: str, **labels: Any) -> list[Any]:
        """Of a metric, those that have these attributes (dots are written as double underlines)."""
        metric = self.metrics[name]
        found = getattr(metric, metric.WhichOneof("data")).data_points
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        return [point for point in found if wanted.items() <= values(point.attributes).items()]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Named:
    """Callers are whoever they say they are; `X-Do: refuse` has a request refused."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key")
        return Principal(id=name) if name else None

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        if exchange.header(b"x-do") == "refuse":
            raise RateLimited("No more.")
        if exchange.header(b"x-do") == "wait":
            exchange.state["queue"] = 0.25


class Traced(NamedTuple):
    """A running gateway that exports, and its backend."""

    client: httpx.AsyncClient
    running: Running
    backend: FakeBackend

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["otel"]
        return plugin

    async def ask(
        self, headers: Mapping[str, str] | None = None, timeout: float = 30.0, **fields: Any
    ) -> httpx.Response:
        body = {**CHAT, **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers, timeout=timeout)

    @property
    def asked(self) -> list[dict[str, str]]:
        """The headers that the backend got, of each try."""
        return [headers for path, headers, _ in self.backend.requests if path.endswith("/chat/completions")]


@contextlib.asynccontextmanager
async def run_traced(endpoint: str, more: Mapping[str, Any] | None = None, **tables: Any) -> AsyncIterator[Traced]:
    async with FakeBackend() as backend:
        document = backend.config(**tables)
        quick = {"endpoint": endpoint, "export_interval": 0.02, "shutdown_timeout": 10.0}
        document["plugins"]["otel"] = {**quick, **(more or {})}
        async with (
            serve(document, {"named": Named, "otel": Plugin}) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30, verify=False) as client,
        ):
            yield Traced(client, running, backend)


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture
def traced(collector: Collector) -> Callable[..., Any]:
    """A context: a gateway whose spans go to `collector`, with these settings of the plugin. When it is left, all that
    the collector takes is there."""
    return lambda more=None, **tables: run_traced(collector.url, more, **tables)


@pytest.fixture
def exporting_to() -> Callable[..., Any]:
    """The same, to any address."""
    return run_traced


@pytest.fixture
def closed_port() -> int:
    return free_port()


@pytest.fixture
def until() -> Callable[..., Any]:
    async def poll(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    return poll


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the plugin has logged."""
    caplog.set_level(logging.INFO, "headrace.otel")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "headrace.otel"]
