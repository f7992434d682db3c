"""What the plugin costs a request: run `python plugins/otel/tests/cost.py`.

The hooks are called as the core calls them for a streamed request with one try that nginx delivers, and nginx is told
what to do, without the request around it. The collector is another process. `loop`: on the event loop's thread, of the
best batch. `export`: CPU time of the thread that exports.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from headrace.choice import directions
from headrace.exchange import Attempt, Exchange, Outcome, Principal, Usage
from headrace.front import Front, lane_of
from headrace.gateway import Gateway
from headrace.settings import parse

BATCH, BATCHES, ROUNDS = 40, 100, 5
BODY = (
    b'{"model":"test","messages":[{"role":"user","content":"hi"}],'
    b'"stream":true,"stream_options":{"include_usage":true}}'
)
CASES: dict[str, dict[str, Any] | None] = {
    "without the plugin": None,
    "traces, sample = 0": {"sample": 0.0, "metrics": False},
    "traces, sample = 0, client says unsampled": {"sample": 0.0, "metrics": False},
    "traces, sample = 1": {"sample": 1.0, "metrics": False},
    "traces, sample = 0.1": {"sample": 0.1, "metrics": False},
    "metrics": {"traces": False},
    "traces, sample = 1, and metrics": {"sample": 1.0},
}
PARENT = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...


def serve_sink(port: Any) -> None:
    with HTTPServer(("127.0.0.1", 0), Sink) as server:
        port.value = server.server_port
        server.serve_forever()


@contextlib.contextmanager
def sink() -> Iterator[str]:
    port = multiprocessing.Value("i", 0)
    child = multiprocessing.Process(target=serve_sink, args=(port,), daemon=True)
    child.start()
    while not port.value:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port.value}"
    child.terminate()


def document(settings: dict[str, Any] | None) -> dict[str, Any]:
    backend = {"provider": "openai", "base_url": "http://127.0.0.1:9", "headers": {"x-team": "a"}}
    return {
        "backends": {"fake": backend},
        "models": {"test": {"targets": ["fake"]}},
        "plugins": {"openai": {}, **({"otel": settings} if settings is not None else {})},
    }


async def one(gateway: Gateway, front: Front, headers: list[tuple[bytes, bytes]]) -> None:
    """The hooks of one request, in order."""
    hooks, endpoint = gateway.hooks, gateway.endpoints["/v1/chat/completions"]
    scope = {"headers": headers, "method": "POST", "path": endpoint.path, "client": None}
    exchange = Exchange(id="4bf92f3577b34da6a3ce929d0e0e4736", endpoint=endpoint, scope=scope, body=BODY)
    exchange.peek = endpoint.read(BODY)
    exchange.model, exchange.principal = gateway.models.find("test"), Principal(id="k-1")
    exchange.header(b"authorization")  # somebody has asked who it is
    exchange.usage_wanted = True  # and how many tokens there will be
    exchange.taps = hooks.open_taps(exchange)
    target = exchange.model.targets[0]
    attempt = Attempt(exchange, 1, target, gateway.providers["openai"])
    exchange.attempts.append(attempt)
    attempt.request = attempt.provider.build(attempt)
    await hooks.prepare_attempt(attempt)
    assert not isinstance(directions(attempt, front), str)
    outcome = Outcome(
        status=200,
        completed=True,
        target="fake",
        delivery="offload",
        delivery_reason="nothing needs the reply's bytes",
        usage=Usage(12, 34),
        ttft_seconds=0.1,
        duration_seconds=0.5,
        attempts=1,
    )
    await hooks.on_attempt(attempt, outcome)
    await hooks.on_complete(exchange, outcome)
    attempt.let_go()


async def measure(name: str, settings: dict[str, Any] | None, url: str) -> tuple[float, float]:
    """Microseconds a request: on this thread, and of other threads."""
    more = {"endpoint": url, "queue_bytes": 1 << 28} if settings is not None else {}
    gateway = Gateway(parse(document({**settings, **more} if settings is not None else None), source="cost")).assemble()
    lane = lane_of(gateway.models.targets[0])
    assert lane is not None
    front = Front("m", frozenset((lane.key,)), 1 << 20, (), frozenset(("x-team",)))
    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"content-type", b"application/json"), (b"user-agent", b"curl/8")]
    headers += [PARENT] if "client says" in name else []
    best = float("inf")
    async with gateway.running():
        other = time.process_time() - time.thread_time()
        for _ in range(BATCHES):
            began = time.perf_counter()
            for _ in range(BATCH):
                await one(gateway, front, headers)
            best = min(best, time.perf_counter() - began)
    other = time.process_time() - time.thread_time() - other
    return best / BATCH * 1e6, other / BATCH / BATCHES * 1e6


def main() -> None:
    """Each case several times, in turns; the least counts, for whatever else runs here only adds to it."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    with sink() as url:
        for _ in range(ROUNDS):
            for name, settings in CASES.items():
                found[name].append(asyncio.run(measure(name, settings, url)))
    least = {name: [min(column) for column in zip(*each, strict=True)] for name, each in found.items()}
    (base, _), *_ = least.values()
    print(f"{'µs a request':45}{'loop':>9}{'export':>9}")
    for name, (loop, export) in least.items():
        print(f"{name:45}{loop - base:9.1f}{export:9.1f}")


if __name__ == "__main__":
    main()
