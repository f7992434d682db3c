"""Traces of a gateway with two workers, whoever delivers: what a collector was told, and what backends were."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

HELLO = [{"role": "user", "content": "hi"}]
SORRY = b'{"error":{"message":"sorry","type":"server_error","param":null,"code":null}}'
PARENT = "00f067aa0ba902b7"
OTEL = """request_headers = ["baggage"]
[plugins.otel]
endpoint = "{url}"
export_interval = 3600
metrics_interval = 3600
trust_incoming = true
baggage = true
"""
WAYS = ("inline", "offload")


class Span(NamedTuple):
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    instance: str


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Span] = []
        self.requests: list[int] = []
        """Of each export of metrics, how many requests it tells of."""

    def take_spans(self, sent: ExportTraceServiceRequest) -> None:
        for each in sent.resource_spans:
            instance = values(each.resource.attributes)["service.instance.id"]
            for span in (span for scope in each.scope_spans for span in scope.spans):
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                kind = {2: "server", 3: "client"}[span.kind]
                self.spans.append(Span(kind, *ids, values(span.attributes), instance))

    def take_metrics(self, sent: ExportMetricsServiceRequest) -> None:
        scopes = [scope for each in sent.resource_metrics for scope in each.scope_metrics]
        durations = [m for scope in scopes for m in scope.metrics if m.name == "http.server.request.duration"]
        self.requests.append(sum(point.count for metric in durations for point in metric.histogram.data_points))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.take_spans(ExportTraceServiceRequest.FromString(body))
        else:
            self.server.take_metrics(ExportMetricsServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


class Told(NamedTuple):
    """What is left when the gateway has ended."""

    way: str
    collector: Collector
    names: dict[str, str]
    """Ids of requests, by what was special about them."""
    asked: dict[str, dict[str, str]]
    """The headers that a backend got, by the request's id and the backend's name: `ID raw`."""
    total: int

    def server(self, kind: str) -> Span:
        """The span of the request that was asked like this."""
        wanted = self.names[kind]
        (found,) = [s for s in self.collector.spans if s.attributes.get("headrace.request.id") == wanted]
        return found

    def tries(self, kind: str) -> list[Span]:
        parent = self.server(kind).id
        return [span for span in self.collector.spans if span.parent == parent]

    def backend(self, kind: str, backend: str = "fake") -> dict[str, str]:
        return self.asked[f"{self.names[kind]} {backend}"]


@pytest.fixture(scope="module", params=WAYS)
def told(own_stack: Any, kit: Any, request: pytest.FixtureRequest) -> Iterator[Told]:
    """Each kind of request has been asked, and the gateway was then told to stop."""
    with collecting() as collector:
        tables = {
            "server": "workers = 2",
            "keys": "failures_per_minute = 0",
            "models": 'rescued = { targets = ["raw", "fake"], retry = { rounds = 1 } }',
            "plugins": OTEL.format(url=f"http://127.0.0.1:{collector.server_port}"),
        }
        with own_stack(way=request.param, **tables) as stack:
            if stack.delivery == "offload":
                stack.warm_up()
            stack.reset()
            names = ask_everything(stack, kit)
            asked = {
                f"{headers['x-request-id']} {backend}": headers
                for backend, requests in (("fake", stack.fake.requests), ("raw", stack.raw.requests))
                for _, headers, _ in requests
                if "x-request-id" in headers
            }
            assert not collector.spans  # the interval is an hour
            reload(stack)
            asyncio.run(many(stack.route("nginx")))
            assert stack.launched.end() == 0
            written = stack.logs.joinpath("requests.log").read_text().count('"event":"request"')
            yield Told(request.param, collector, names, asked, written)


def ask_everything(stack: Any, kit: Any) -> dict[str, str]:
    """Ids of requests, each asked when the one before was over."""
    route = stack.route("nginx")
    names: dict[str, str] = {}

    def ask(kind: str, *headers: str, status: int = 200, **fields: Any) -> None:
        name = names[kind] = uuid.uuid4().hex
        answer = route.post({"model": "fake", "messages": HELLO, **fields}, name, headers=headers)
        assert answer.status == status, (kind, answer.body)
        stack.logged(name)

    ask("plain")
    ask("stream", stream=True)
    ask("continued", f"traceparent: 00-{'a' * 32}-{PARENT}-01", "tracestate: a=1", "baggage: k=v")
    ask("unrecorded", f"traceparent: 00-{'b' * 32}-{PARENT}-00", "tracestate: a=1")
    ask("invalid", f"traceparent: 00-{'A' * 32}-{PARENT}-01", "tracestate: a=1")
    ask("refused", model="nobody-knows", status=404)
    stack.raw.tell(kit.whole(SORRY, "500 Internal Server Error"))
    ask("rescued", model="rescued")
    asyncio.run(many(route))
    return names


def reload(stack: Any) -> None:
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "reload"]
    subprocess.run(command, check=True, capture_output=True)


async def many(route: Any) -> None:
    """So many callers that every worker gets some: nginx sends each of them to one of its own."""
    body = {"model": "fake", "messages": HELLO}
    await asyncio.gather(*(route.ask((route.request(body, key=f"hr-unknown-{number}"),)) for number in range(30)))


@pytest.mark.parametrize("kind", ["plain", "stream", "continued"])
def test_the_backend_is_told_the_try_s_own_span(told: Told, kind: str) -> None:
    (attempt,) = told.tries(kind)
    assert told.backend(kind)["traceparent"][:-2] == f"00-{attempt.trace}-{attempt.id}-"
    assert int(told.backend(kind)["traceparent"][-2:], 16) & 1


@pytest.mark.parametrize("kind", ["plain", "stream", "continued", "invalid"])
def test_spans_say_who_delivered(told: Told, kind: str) -> None:
    spans = [told.server(kind), *told.tries(kind)]
    assert {span.attributes["headrace.delivery"] for span in spans} == {told.way}


def test_tokens_are_counted_whoever_delivers(told: Told) -> None:
    for kind, tokens in (("plain", 1), ("stream", 3)):
        assert told.server(kind).attributes["gen_ai.usage.output_tokens"] == tokens


def test_a_client_s_trace_goes_on(told: Told) -> None:
    server = told.server("continued")
    assert (server.trace, server.parent) == ("a" * 32, PARENT)
    asked = told.backend("continued")
    assert (asked["tracestate"], asked["baggage"]) == ("a=1", "k=v")


def test_a_request_that_is_not_recorded_says_so_to_the_backend(told: Told) -> None:
    assert not [span for span in told.collector.spans if span.trace == "b" * 32]
    asked = told.backend("unrecorded")
    assert (asked["traceparent"], asked["tracestate"]) == (f"00-{'b' * 32}-{PARENT}-00", "a=1")


def test_an_invalid_traceparent_is_replaced_with_its_state(told: Told) -> None:
    server, asked = told.server("invalid"), told.backend("invalid")
    assert (server.parent, asked["tracestate"]) == ("", "headrace=restarted")
    assert asked["traceparent"].split("-")[1] == server.trace


def test_each_try_has_its_own_span_and_tells_it_its_own_backend(told: Told) -> None:
    first, second = sorted(told.tries("rescued"), key=lambda span: span.attributes["headrace.attempt"])
    assert [first.attributes["headrace.target"], second.attributes["headrace.target"]] == ["raw", "fake"]
    assert first.attributes["error.type"] == "upstream_error"
    assert told.backend("rescued", "raw")["traceparent"].split("-")[1:3] == [first.trace, first.id]
    assert told.backend("rescued", "fake")["traceparent"].split("-")[1:3] == [second.trace, second.id]


def test_a_refused_request_has_a_span_and_no_tries(told: Told) -> None:
    assert told.server("refused").attributes["http.response.status_code"] == 404
    assert told.tries("refused") == []


def test_the_end_of_the_gateway_loses_nothing(told: Told) -> None:
    servers = [span for span in told.collector.spans if span.kind == "server"]
    assert len(servers) == told.total - 1  # one was not to be recorded
    assert sum(told.collector.requests) == told.total


def test_each_worker_is_an_instance_of_its_own_before_a_reload_and_after(told: Told) -> None:
    assert len({span.instance for span in told.collector.spans}) == 4
