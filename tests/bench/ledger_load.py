"""Requests of many kinds in a fixed order, asked over many connections; what each client saw of its answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from . import answers
from .connection import CHUNKED, CLOSE, LAST_CHUNK, LENGTH, STATUS, dechunked
from .targets import Endpoint

Kind = Literal["whole", "stream", "repeat", "shared", "refusing", "gone", "left"]
SHARES: dict[Kind, int] = {
    "whole": 22,
    "stream": 22,
    "repeat": 20,
    "shared": 8,
    "refusing": 9,
    "gone": 7,
    "left": 12,
}
"""Of a hundred. What is shared are streams that two ask for at a time, and that either of them may leave."""
REFUSING, GONE = "bench-refusing", "bench-gone"
MODELS: dict[Kind, str] = {"refusing": REFUSING, "gone": GONE}
"""Those whose first target fails; all others ask for the usual one."""
SAME = 60
"""Requests that are asked again and again."""
PREFIX = "ledger-"
"""Of the ids of our requests."""
PATIENCE = 120.0
"""Seconds that an answer may take."""
HIT = re.compile(rb"\r\nx-cache:[ \t]*hit", re.IGNORECASE)
TEXT = b'"content": " token'
"""In each chunk of a stream that has a token."""


class Ask(NamedTuple):
    """One request."""

    id: str
    kind: Kind
    prompt: str
    tokens: int
    stream: bool
    usage: bool
    leaves_after: int = 0
    """Chunks; 0: it stays until the end."""

    @property
    def model(self) -> str:
        return MODELS.get(self.kind, answers.MODEL)

    def encode(self, endpoint: Endpoint) -> bytes:
        """Head and body."""
        fields: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.tokens,
        }
        fields |= {"temperature": 0} if self.kind in ("repeat", "shared") else {}
        fields |= {"stream": True} if self.stream else {}
        fields |= {"stream_options": {"include_usage": True}} if self.usage else {}
        body = json.dumps(fields).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: 127.0.0.1:{endpoint.port}",
            "Content-Type: application/json",
            f"X-Request-ID: {self.id}",
            f"Content-Length: {len(body)}",
            *endpoint.headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def expected(self) -> bytes:
        """The answer's body."""
        return answers.stream(self.tokens, self.usage) if self.stream else answers.unary(self.tokens)


class Seen(msgspec.Struct):
    """What a client saw."""

    ask: Ask
    status: int = 0
    """0: no answer."""
    hit: bool = False
    chunks: int = 0
    """Of a stream that was left."""
    whole: bool = False
    """The answer is complete, and the upstream's own, byte for byte."""
    error: str = ""


def mix(count: int, seed: int) -> list[Ask]:
    """So many requests, the same ones for the same seed."""
    chance = random.Random(seed)
    same = [_same(number, chance) for number in range(SAME)]
    kinds: list[Kind] = chance.choices(list(SHARES), list(SHARES.values()), k=count)
    together = itertools.count()
    return [
        _shared(f"{PREFIX}{number:06}", next(together) // 2, chance)
        if kind == "shared"
        else _ask(f"{PREFIX}{number:06}", kind, same, chance)
        for number, kind in enumerate(kinds)
    ]


def _shared(name: str, number: int, chance: random.Random) -> Ask:
    """Two have the same number."""
    after = chance.randint(1, 12) if chance.random() < 0.5 else 0
    return Ask(name, "shared", f"Together {number}.", 100, True, False, leaves_after=after)


def _same(number: int, chance: random.Random) -> Ask:
    stream = number % 3 == 0
    return Ask("", "repeat", f"Repeat {number}.", chance.randint(1, 24), stream, stream and number % 2 == 0)


def _ask(name: str, kind: Kind, same: Sequence[Ask], chance: random.Random) -> Ask:
    if kind == "repeat":
        return chance.choice(same)._replace(id=name)
    prompt = f"Which way does the water of {name} flow? " * chance.randint(1, 20)
    if kind == "left":  # long enough that no client finds it complete
        return Ask(name, kind, prompt, 400, True, chance.random() < 0.5, leaves_after=chance.randint(1, 12))
    stream = kind == "stream" or (kind in MODELS and chance.random() < 0.5)
    return Ask(name, kind, prompt, chance.randint(1, 32), stream, stream and chance.random() < 0.5)


class Clients:
    """Clients that ask one request after the other, over connections that are kept open.

    Args:
        passed: told after each answer how many there were.
    """

    def __init__(self, endpoint: Endpoint, asks: Iterable[Ask], passed: Callable[[int], None]) -> None:
        self._endpoint, self._asks, self._passed = endpoint, iter(asks), passed
        self._seen: list[Seen] = []

    async def run(self, clients: int) -> list[Seen]:
        """Ask everything, over so many connections at a time."""
        await asyncio.gather(*(self._client() for _ in range(clients)))
        return self._seen

    async def _client(self) -> None:
        line: Line | None = None
        for ask in self._asks:
            seen = Seen(ask)
            try:
                async with asyncio.timeout(PATIENCE):
                    line = line or await Line.open(self._endpoint)
                    await line.ask(seen)
            except (OSError, EOFError, TimeoutError) as error:
                seen.error = f"{type(error).__name__}: {error}"
                if line is not None:
                    line.close()
            if line is not None and line.closed:
                line = None
            self._seen.append(seen)
            self._passed(len(self._seen))
        if line is not None:
            line.close()


class Line:
    """A client's connection."""

    def __init__(self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._endpoint, self._reader, self._writer = endpoint, reader, writer
        self.closed = False

    @classmethod
    async def open(cls, endpoint: Endpoint) -> Line:
        return cls(endpoint, *await asyncio.open_connection("127.0.0.1", endpoint.port))

    async def ask(self, seen: Seen) -> None:
        """Note what comes of a request. Raises OSError, EOFError."""
        self._writer.write(seen.ask.encode(self._endpoint))
        head = (await self._reader.readuntil(b"\r\n\r\n"))[:-2]
        status = STATUS.match(head)
        seen.status, seen.hit = int(status[1]) if status else 0, HIT.search(head) is not None
        if seen.ask.leaves_after and seen.status == 200:
            await self._leave(seen)
            return
        body = await self._body(head)
        seen.whole = seen.status == 200 and body == seen.ask.expected()
        if not seen.whole:
            seen.error = f"status {seen.status}: {body[-300:].decode('utf-8', 'replace')}"
        if CLOSE.search(head):
            self.close()

    async def _leave(self, seen: Seen) -> None:
        """Read a few chunks and go."""
        body = b""
        while (chunks := body.count(TEXT)) < seen.ask.leaves_after:
            body += await self._more()
        seen.chunks = chunks
        self.close()

    async def _body(self, head: bytes) -> bytes:
        length = LENGTH.search(head)
        if length is not None:
            return await self._reader.readexactly(int(length[1]))
        if CHUNKED.search(head) is None:
            self.closed = True
            return await self._reader.read()
        body = b""
        while not body.endswith(LAST_CHUNK) or (whole := dechunked(body, 0)) is None:
            body += await self._more()
        return whole

    async def _more(self) -> bytes:
        """Raises EOFError."""
        if not (data := await self._reader.read(65536)):
            raise EOFError("the answer ended early")
        return data

    def close(self) -> None:
        self.closed = True
        self._writer.transport.abort()
