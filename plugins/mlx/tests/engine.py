"""A server that says word for word what an engine would say, and a gateway in front of it.

The tests of several providers share it: their conftest.py read it by its path.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from headrace.gateway import Gateway
from headrace.providers import Health
from headrace.settings import parse
from headrace.testing import Listening, serve

EVENTS = "text/event-stream"


def whole(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    """A reply of known length; `body` is JSON, or bytes as they are. Underscores in headers' names are hyphens."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    given = {"Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content


def until_closed(content: bytes, kind: str = "application/json", status: int = 200) -> bytes:
    """A reply of HTTP/1.0 that ends with its connection."""
    return f"HTTP/1.0 {status} X\r\nContent-Type: {kind}\r\n\r\n".encode() + content


def chunked(*chunks: bytes, cut: bool = False, kind: str = EVENTS) -> bytes:
    """A stream; `cut`: without its end."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    )
    return head + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + (b"" if cut else b"0\r\n\r\n")


class Engine(Listening):
    """Answers each path with what `says` has for it, else 404 as `unknown` has it.

    Attributes:
        says: replies, bytes on the wire, by method and path: `POST /v1/chat/completions`.
        lingers: whether a connection stays open until the other side closes it.
        asked: the path and the fields of every request that had a body.
    """

    def __init__(self) -> None:
        self.says: dict[str, bytes] = {}
        self.lingers = False
        self.unknown = whole({"detail": "Not Found"}, 404)
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = request.split(" ")
        if body:
            self.asked.append((path, msgspec.json.decode(body)))
        self.headers.append(headers)
        writer.write(self.says.get(f"{method} {path}", self.unknown))
        await writer.drain()
        if self.lingers:
            await reader.read()
        return False


def document(provider: str, url: str = "", **backend: Any) -> dict[str, Any]:
    """A configuration whose model `m` is this one backend, asked once."""
    tables = {key: backend.pop(key) for key in ("plugins", "model_table") if key in backend}
    return {
        "server": {"anonymous": True},
        "backends": {"b": {"provider": provider, **({"base_url": url} if url else {}), **backend}},
        "models": {"m": {"targets": ["b"], "retry": {"rounds": 1}, **tables.get("model_table", {})}},
        "plugins": {provider: {}, **tables.get("plugins", {})},
    }


class Asking:
    """An engine with a gateway in front of it."""

    def __init__(self, engine: Engine, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.engine, self.gateway, self.client = engine, gateway, client
        (model,) = gateway.models
        (self.target,) = model.targets

    async def chat(self, **fields: Any) -> httpx.Response:
        given = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=given)

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "m", "prompt": "Once", **fields})

    async def health(self) -> Health:
        return await self.gateway.health_checks[self.target.provider].check(self.target)

    async def models(self) -> list[str]:
        return list(await self.gateway.providers[self.target.provider].models(self.target))

    @property
    def sent(self) -> Any:
        """The fields of the last request."""
        return self.engine.asked[-1][1]


@contextlib.asynccontextmanager
async def asking(provider: str, **backend: Any) -> AsyncIterator[Asking]:
    """A gateway with one backend, which is an engine."""
    async with (
        Engine() as engine,
        serve(document(provider, engine.url, **backend)) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
    ):
        yield Asking(engine, running.gateway, client)


def assembled(provider: str, **backend: Any) -> Any:
    """The target of a configuration. Raises ConfigError."""
    (model,) = Gateway(parse(document(provider, **backend)), "test").assemble().models
    return model.targets[0]


def events(response: httpx.Response) -> list[Any]:
    """What the events of a stream say, `[DONE]` included."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else msgspec.json.decode(line) for line in lines]
