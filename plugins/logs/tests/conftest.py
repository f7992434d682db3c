"""A real gateway on a real socket, with a backend that does what the model's name says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.gateway import Gateway
from headrace.server import make_server
from headrace.settings import parse

Document = Mapping[str, Any]

ANSWER: Document = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}
CHUNKS: list[Document] = [
    {"choices": [{"index": 0, "delta": {"content": "Hel"}}]},
    {"choices": [{"index": 0, "delta": {"content": "lo!"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
]
LEAK = "Authorization: Bearer sk-aaaaAAAA1111bbbbBBBB of ada@example.org\nsecond line"


class Backend:
    """An OpenAI-compatible server. `hang` answers one chunk and waits; `left` is set when its client goes."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            await getattr(self, body["model"])(reader, writer)
            await writer.drain()
        finally:
            writer.close()

    async def ok(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._whole(writer, "200 OK", ANSWER)

    async def refuses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._whole(writer, "400 Bad Request", {"error": {"message": "too long", "type": "invalid_request_error"}})

    async def fails(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._whole(writer, "500 Internal Server Error", {"error": {"message": LEAK}})

    async def streams(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._events(writer, *CHUNKS)
        writer.write(b"data: [DONE]\n\n")

    async def cuts(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._events(writer, CHUNKS[0])

    async def hangs(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._events(writer, CHUNKS[0])
        await reader.read()
        self.left.set()

    def _whole(self, writer: asyncio.StreamWriter, status: str, document: Document) -> None:
        body = json.dumps(document).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n".encode())
        writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def _events(self, writer: asyncio.StreamWriter, *events: Document) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for event in events:
            writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class Running:
    """A gateway under test: `client` speaks to it, `lines()` are the objects in its log once it has ended."""

    def __init__(self, client: httpx.AsyncClient, port: int, backend: Backend, path: Path) -> None:
        self.client = client
        self.port = port
        self.backend = backend
        self.path = path

    async def chat(self, model: str, headers: Mapping[str, str] | None = None, **fields: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "the prompt"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text("utf-8").split("\n")[:-1]]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == "request"]


Run = Callable[..., contextlib.AbstractAsyncContextManager[Running]]

MODELS = ("ok", "refuses", "fails", "streams", "cuts", "hangs")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`async with run(level="debug") as gateway:` runs one with these options of `[plugins.logs]`."""

    @contextlib.asynccontextmanager
    async def run(**options: object) -> AsyncIterator[Running]:
        backend = Backend()
        behind = await asyncio.start_server(backend.answer, "127.0.0.1", 0)
        port = behind.sockets[0].getsockname()[1]
        target = {"provider": "openai", "base_url": f"http://127.0.0.1:{port}"}
        document = {
            "server": {"state_dir": str(tmp_path / "state"), "anonymous": True},
            "backends": {"behind": target},
            "models": {name: {"targets": ["behind"]} for name in MODELS},
            "plugins": {"logs": {"path": "gateway.log", **options}, "openai": {}},
        }
        gateway = Gateway(parse(document)).assemble()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
            async with behind, gateway.running(), _served(gateway, listener), client:
                yield Running(client, port, backend, tmp_path / "state" / "gateway.log")

    return run


@contextlib.asynccontextmanager
async def _served(gateway: Gateway, listener: socket.socket) -> AsyncIterator[None]:
    server = make_server(gateway)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


@pytest.fixture(autouse=True)
def loggers_are_left_as_they_were() -> Iterator[None]:
    names = ("headrace", "uvicorn.error", "asyncio")
    before = [(logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names]
    yield
    assert before == [(logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names]
