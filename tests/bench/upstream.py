"""A cheap upstream in a process of its own: `python -m bench.upstream --pace 10`.

It speaks enough of the OpenAI API for any gateway: whole and streamed chat completions and the list of models. A
stream has as many chunks as the request's `max_tokens` says, one every `--pace` milliseconds: like an engine that
batches, which makes the next token of every sequence in one step, it sends those of all streams together. With
`--lasting` a stream takes that many milliseconds in all, however many chunks it has, each on its own. `GET /stats`
tells how many connections are open and how many streams are on their way, now and at most, and what it has made in
all. With `--record` `GET /record` tells what became of each completion, by the request's id. Everything below
`/refusing` is answered 503. It prints `READY PORT` and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from typing import NamedTuple, cast

import httptools
import msgspec
import uvloop

from . import answers

TELEMETRY = frozenset((b"/v1/traces", b"/v1/metrics"))
"""What spans and metrics of OpenTelemetry are sent to: it takes them."""
KEEP_ALIVE = (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
PROMPT_TOKENS: int = json.loads(answers.unary(1))["usage"]["prompt_tokens"]
"""What every prompt has, as the answers tell it."""
REFUSING = b"/refusing/"
REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 47\r\n\r\n"
    b'{"error": {"message": "no", "type": "refused"}}'
)
STREAM = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class Ask(msgspec.Struct):
    """What matters of a chat completion's request."""

    stream: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: StreamOptions | None = None

    @property
    def tokens(self) -> int:
        return self.max_tokens or self.max_completion_tokens or 16

    @property
    def usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Completion(msgspec.Struct):
    """What became of one completion."""

    id: str = ""
    """The request's `X-Request-ID`; empty if nothing is recorded."""
    stream: bool = False
    finished: bool = False
    chunks: int = 0
    """Of a stream: those with text that were sent."""
    prompt_tokens: int = 0
    """As told in `usage`; 0 if that was not asked for, or not reached."""
    completion_tokens: int = 0

    def finish(self, tokens: int, *, told: bool) -> None:
        self.finished = True
        if told:
            self.prompt_tokens, self.completion_tokens = PROMPT_TOKENS, tokens


class Counters:
    """What happened so far."""

    def __init__(self) -> None:
        self.open = self.connections = self.requests = self.left_early = self.streaming = self.most_streaming = 0
        self.completions = self.finished = self.refused = 0
        """Refused are completions that were asked for below `/refusing`."""
        self.prompt_tokens = self.completion_tokens = 0
        """As told in `usage`."""
        self.left_chunks = 0
        """Sent in streams that were left early."""

    def ends(self, completion: Completion) -> None:
        if completion.finished:
            self.finished += 1
            self.prompt_tokens += completion.prompt_tokens
            self.completion_tokens += completion.completion_tokens
        else:
            self.left_chunks += completion.chunks

    def stream_begins(self) -> None:
        self.streaming += 1
        self.most_streaming = max(self.most_streaming, self.streaming)

    def encode(self) -> bytes:
        return json.dumps(vars(self)).encode()


class Streaming(NamedTuple):
    """A stream on its way."""

    chunks: list[bytes]
    """Those to come, the next one last."""
    end: bytes
    ask: Ask
    completion: Completion


class Pace(NamedTuple):
    """How fast chunks come, in seconds: one every `step`, or all of them evenly within `lasting` if that is given."""

    step: float
    lasting: float | None = None


class Engine:
    """Steps for as long as there are streams; in each one every stream gets its next chunk."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._streams: dict[Connection, None] = {}
        self._due = 0.0

    def join(self, connection: Connection) -> None:
        self._streams[connection] = None
        if len(self._streams) == 1:
            self._due = self._loop.time()
            self._loop.call_soon(self._go)

    def leave(self, connection: Connection) -> None:
        self._streams.pop(connection, None)

    def _go(self) -> None:
        for connection in list(self._streams):
            connection.step()
        if self._streams:
            self._due += self._step
            self._loop.call_at(self._due, self._go)


class Connection(asyncio.Protocol):
    """One client's connection; httptools calls the `on_…` methods."""

    def __init__(self, pace: Pace, engine: Engine, counters: Counters, record: list[Completion]) -> None:
        self._pace, self._engine, self._counters, self._record = pace, engine, counters, record
        self._id = ""
        self._loop = asyncio.get_running_loop()
        self._streaming: Streaming | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._counters.open += 1
        self._counters.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._counters.open -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._streaming is not None:
            completion, self._streaming = self._streaming.completion, None
            self._engine.leave(self)
            self._counters.ends(completion)
            self._counters.left_early += 1
            self._counters.streaming -= 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._path = b""
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._counters.requests += 1
        self._head = KEEP_ALIVE[not self._parser.should_keep_alive()]
        if self._path in TELEMETRY:
            self._whole(b"")
        elif REFUSING in self._path:
            self._counters.refused += self._parser.get_method() == b"POST"
            self._transport.write(REFUSED)
        elif self._parser.get_method() == b"POST":
            self._complete(msgspec.json.decode(b"".join(self._body), type=Ask))
        elif self._path.endswith(b"/stats"):
            self._whole(self._counters.encode())
        elif self._path.endswith(b"/record"):
            self._whole(msgspec.json.encode(self._record))
        else:  # the list of models, and whatever gateways look at to see whether we are well
            self._whole(answers.MODELS)

    def _complete(self, ask: Ask) -> None:
        self._counters.completions += 1
        completion = self._noted(ask)
        if not ask.stream:
            completion.finish(ask.tokens, told=True)
            self._counters.ends(completion)
            return self._whole(answers.unary(ask.tokens))
        self._transport.write(self._head + STREAM)
        end = _chunk(answers.ending(ask.tokens, ask.usage)) + b"0\r\n\r\n"
        chunks = [_chunk(event) for event in answers.events(ask.tokens)]
        chunks.reverse()
        self._counters.stream_begins()
        self._streaming = Streaming(chunks, end, ask, completion)
        if self._pace.lasting is None:
            self._engine.join(self)
        else:
            self._next(self._loop.time(), self._pace.lasting / ask.tokens, 1)
        return None

    def _noted(self, ask: Ask) -> Completion:
        return Completion(stream=ask.stream)

    def _whole(self, body: bytes) -> None:
        self._transport.write(self._head + JSON % len(body) + body)
        self._finish()

    def step(self) -> None:
        """Send the next chunk, or the end of the stream."""
        assert self._streaming is not None
        if self._streaming.chunks:
            self._transport.write(self._streaming.chunks.pop())
            self._streaming.completion.chunks += 1
            return
        (_, end, ask, completion), self._streaming = self._streaming, None
        completion.finish(ask.tokens, told=ask.usage)
        self._counters.ends(completion)
        self._engine.leave(self)
        self._counters.streaming -= 1
        self._transport.write(end)
        self._finish()

    def _next(self, started: float, pace: float, number: int) -> None:
        """One chunk now, the next when it is due; counted from the start, so that a late one delays no other."""
        self._timer = None
        self.step()
        if self._streaming is not None:
            self._timer = self._loop.call_at(started + number * pace, self._next, started, pace, number + 1)

    def _finish(self) -> None:
        if self._head is KEEP_ALIVE[1]:
            self._transport.close()


class Recording(Connection):
    """One that keeps what it knows of each completion."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._id = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._id = value.decode("latin-1")

    def _noted(self, ask: Ask) -> Completion:
        completion = Completion(self._id, ask.stream)
        self._record.append(completion)
        return completion


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main(pace: Pace, *, record: bool) -> None:
    """Serve until standard input ends."""
    counters, completions = Counters(), list[Completion]()
    kind = Recording if record else Connection
    loop = asyncio.get_running_loop()
    engine = Engine(pace.step)
    server = await loop.create_server(lambda: kind(pace, engine, counters, completions), "127.0.0.1", 0, backlog=4096)
    print("READY", server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=10.0, help="milliseconds between two chunks")
    parser.add_argument("--lasting", type=float, help="milliseconds of a whole stream; the pace follows")
    parser.add_argument("--record", action="store_true", help="keep what became of each completion")
    options = parser.parse_args()
    chosen = Pace(options.pace / 1000, None if options.lasting is None else options.lasting / 1000)
    uvloop.run(main(chosen, record=options.record))
