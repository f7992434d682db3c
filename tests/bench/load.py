"""A load generator in a process of its own: `python -m bench.load --port 8080 --mode stream --concurrency 32`.

It keeps `--concurrency` connections busy until `--requests` have been answered or `--seconds` are over, checks every
answer against what the upstream sends, and prints one JSON object. With `--wait` it prints `WARM` after the warm-up
and goes on at a line on standard input, so that somebody else can take the time of what it asks.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import math
import ssl
import sys
import time
from collections.abc import Sequence

import msgspec
import uvloop

from . import answers
from .connection import Address, Answer, Connection

GRACE_SECONDS = 60.0
"""For requests still open when the time is over."""
CLIENT_USAGE = "whether clients ask streams for token usage (stream_options.include_usage)"
PROMPT = "Which way does the water flow through the mill? "


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, how often, over how many connections."""

    requests: int
    concurrency: int
    seconds: float = math.inf
    warm_up: int = 0
    stream: bool = False
    usage: bool = True
    chunks: int = 100
    prompt_bytes: int = 500
    spread: float = 0.0
    """Seconds in which the connections begin, one after the other."""
    model: str = answers.MODEL
    headers: tuple[str, ...] = ()

    def expected(self) -> bytes:
        """The body of every answer."""
        return answers.stream(self.chunks, self.usage) if self.stream else answers.unary(self.chunks)

    def encode(self, address: Address) -> bytes:
        """The request, head and body; `chunks` travels as `max_tokens`, which every gateway passes on."""
        prompt = (PROMPT * (self.prompt_bytes // len(PROMPT) + 1))[: self.prompt_bytes]
        fields: dict[str, object] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        fields |= {"max_tokens": self.chunks}
        if self.stream:
            fields |= {"stream": True}
            fields |= {"stream_options": {"include_usage": True}} if self.usage else {}
        body = json.dumps(fields).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {address.host}:{address.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *self.headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Report(msgspec.Struct, kw_only=True):
    """What came of it. Times in milliseconds, from the request's first byte sent to …"""

    completed: int
    errors: dict[str, int]
    different: int
    """Answers that were complete, but not the upstream's bytes."""
    seconds: float
    rps: float
    p50_ms: float
    """… the answer's last byte received."""
    p99_ms: float
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    connections: int
    """How many were opened."""
    first_error: str = ""


class Load:
    """A run of requests: how many are to be started, and what came of those that ended."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self._settings, self._address = settings, address
        self._request, self._expected = settings.encode(address), settings.expected()
        self._connections: list[Connection | None] = [None] * settings.concurrency
        self._opened = 0
        self._begin(0, math.inf)

    def _begin(self, count: int, seconds: float) -> None:
        self._left = count
        self._durations: list[float] = []
        self._first_bytes: list[float] = []
        self._errors: collections.Counter[str] = collections.Counter()
        self._first_error = ""
        self._different = 0
        self._started = time.perf_counter()
        self._end = self._started + seconds

    async def run(self, count: int, seconds: float = math.inf) -> Report:
        """Have `count` requests answered, or those that can be started within `seconds`."""
        self._begin(count, seconds)
        workers = [asyncio.create_task(self._work(number)) for number in range(self._settings.concurrency)]
        limit = None if seconds == math.inf else seconds + GRACE_SECONDS
        finished, unfinished = await asyncio.wait(workers, timeout=limit)
        seconds = time.perf_counter() - self._started
        for worker in unfinished:
            worker.cancel()
            self._errors["unfinished"] += 1
        for worker in finished:
            worker.result()
        return self._report(seconds)

    async def _work(self, number: int) -> None:
        """One connection's requests, each after the answer to the one before."""
        await asyncio.sleep(number * self._settings.spread / self._settings.concurrency)
        while self._left > 0 and time.perf_counter() < self._end:
            self._left -= 1
            try:
                connection = await self._connection(number)
                started = time.perf_counter()
                answer = await connection.ask(self._request)
                ended = time.perf_counter()
            except OSError as error:
                self._fail(type(error).__name__, str(error))
                self._connections[number] = None
                continue
            if self._check(answer):
                self._durations.append(ended - started)
                self._first_bytes.append(answer.first - started)

    async def _connection(self, number: int) -> Connection:
        connection = self._connections[number]
        if connection is None or not connection.usable:
            self._opened += 1
            connection = self._connections[number] = await Connection.open(self._address)
        return connection

    def _check(self, answer: Answer) -> bool:
        """Whether it is a whole answer; counts it if it is not the upstream's own."""
        if answer.status != 200:
            self._fail(f"status {answer.status}", answer.body.decode("utf-8", "replace"))
        elif answer.body == self._expected:
            return True
        elif not _whole(answer.body, stream=self._settings.stream):
            self._fail("incomplete", answer.body[-200:].decode("utf-8", "replace"))
        else:
            self._different += 1
            return True
        return False

    def _fail(self, kind: str, text: str) -> None:
        self._errors[kind] += 1
        self._first_error = self._first_error or text[:500]

    def _report(self, seconds: float) -> Report:
        durations, firsts = sorted(self._durations), sorted(self._first_bytes)
        return Report(
            completed=len(durations),
            errors=dict(self._errors),
            different=self._different,
            seconds=seconds,
            rps=len(durations) / seconds,
            p50_ms=percentile(durations, 50) * 1000,
            p99_ms=percentile(durations, 99) * 1000,
            first_byte_p50_ms=percentile(firsts, 50) * 1000,
            first_byte_p99_ms=percentile(firsts, 99) * 1000,
            connections=self._opened,
            first_error=self._first_error,
        )


def _whole(body: bytes, *, stream: bool) -> bool:
    """Whether it is an answer of the kind asked for that did not end early."""
    if stream:
        return body.rstrip().endswith(b"data: [DONE]")
    try:
        return "choices" in json.loads(body)
    except ValueError:
        return False


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that `percent` of them do not exceed (nearest rank); 0 if there are none."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


async def main(settings: Settings, address: Address, *, wait: bool) -> Report:
    """Warm up, wait for the word if asked to, and measure."""
    load = Load(settings, address)
    if settings.warm_up:
        await load.run(settings.warm_up)
    gc.freeze()
    gc.disable()
    if wait:
        print("WARM", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return await load.run(settings.requests, settings.seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.load", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cafile", help="speak TLS, and trust this authority")
    parser.add_argument("--mode", choices=("unary", "stream"), default="unary")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no request after so long")
    parser.add_argument("--warm-up", type=int, default=0, help="requests before those that count")
    parser.add_argument("--chunks", type=int, default=100, help="content chunks of a stream")
    parser.add_argument("--client-usage", action=argparse.BooleanOptionalAction, default=True, help=CLIENT_USAGE)
    parser.add_argument("--prompt-bytes", type=int, default=500, help="length of the prompt")
    parser.add_argument("--spread", type=float, default=0.0, help="seconds in which the connections begin, in turns")
    parser.add_argument("--model", default=answers.MODEL)
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE; may be repeated")
    parser.add_argument("--wait", action="store_true", help="print WARM after the warm-up and wait for a line")
    return parser


if __name__ == "__main__":
    options = _parser().parse_args()
    chosen = Settings(
        requests=options.requests,
        concurrency=options.concurrency,
        seconds=options.seconds,
        warm_up=options.warm_up,
        stream=options.mode == "stream",
        usage=options.client_usage,
        chunks=options.chunks,
        prompt_bytes=options.prompt_bytes,
        spread=options.spread,
        model=options.model,
        headers=tuple(options.header),
    )
    context = ssl.create_default_context(cafile=options.cafile) if options.cafile else None
    measured = uvloop.run(main(chosen, Address(options.host, options.port, context), wait=options.wait))
    print(msgspec.json.encode(measured).decode())
