"""A cheap upstream in a process of its own: `python -m bench.upstream --pace 10`.

It speaks enough of the OpenAI API for any gateway: whole and streamed chat completions and the list of models. A
stream has as many chunks as the request's `max_tokens` says, one every `--pace` milliseconds. `GET /stats` tells how
many connections are open and how many streams are on their way, now and at most. With `--lasting` a stream takes that
many milliseconds in all, however many chunks it has. It prints `READY PORT` and ends when its standard input does.
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

KEEP_ALIVE = (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
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


class Counters:
    """What happened so far."""

    def __init__(self) -> None:
        self.open = self.connections = self.requests = self.left_early = self.streaming = self.most_streaming = 0

    def stream_begins(self) -> None:
        self.streaming += 1
        self.most_streaming = max(self.most_streaming, self.streaming)

    def encode(self) -> bytes:
        return json.dumps(vars(self)).encode()


class Streaming(NamedTuple):
    """A stream on its way."""

    chunks: list[bytes]
    end: bytes
    started: float
    pace: float
    """Seconds between two chunks."""


class Pace(NamedTuple):
    """How fast chunks come, in seconds: one every `step`, or all of them evenly within `lasting` if that is given."""

    step: float
    lasting: float | None = None

    def of(self, chunks: int) -> float:
        return self.step if self.lasting is None else self.lasting / chunks


class Connection(asyncio.Protocol):
    """One client's connection; httptools calls the `on_…` methods."""

    def __init__(self, pace: Pace, counters: Counters) -> None:
        self._pace, self._counters = pace, counters
        self._loop = asyncio.get_running_loop()
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
            self._timer = None
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
        if self._parser.get_method() == b"POST":
            self._complete(msgspec.json.decode(b"".join(self._body), type=Ask))
        elif self._path.endswith(b"/stats"):
            self._whole(self._counters.encode())
        else:  # the list of models, and whatever gateways look at to see whether we are well
            self._whole(answers.MODELS)

    def _complete(self, ask: Ask) -> None:
        if not ask.stream:
            return self._whole(answers.unary(ask.tokens))
        self._transport.write(self._head + STREAM)
        end = _chunk(answers.ending(ask.tokens, ask.usage)) + b"0\r\n\r\n"
        chunks = [_chunk(event) for event in answers.events(ask.tokens)]
        chunks.reverse()
        self._counters.stream_begins()
        self._next(Streaming(chunks, end, self._loop.time(), self._pace.of(ask.tokens)), 1)
        return None

    def _whole(self, body: bytes) -> None:
        self._transport.write(self._head + JSON % len(body) + body)
        self._finish()

    def _next(self, streaming: Streaming, number: int) -> None:
        """One chunk now, the next when it is due; counted from the start, so that a late one delays no other."""
        self._timer = None
        if not streaming.chunks:
            self._counters.streaming -= 1
            self._transport.write(streaming.end)
            return self._finish()
        self._transport.write(streaming.chunks.pop())
        self._timer = self._loop.call_at(streaming.started + number * streaming.pace, self._next, streaming, number + 1)
        return None

    def _finish(self) -> None:
        if self._head is KEEP_ALIVE[1]:
            self._transport.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main(pace: Pace) -> None:
    """Serve until standard input ends."""
    counters = Counters()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace, counters), "127.0.0.1", 0, backlog=4096)
    print("READY", server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    gc.disable()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pace", type=float, default=10.0, help="milliseconds between two chunks")
    parser.add_argument("--lasting", type=float, help="milliseconds of a whole stream; the pace follows")
    options = parser.parse_args()
    uvloop.run(main(Pace(options.pace / 1000, None if options.lasting is None else options.lasting / 1000)))
