"""A backend that says what it is told to, and gateways before it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.testing import Listening, serve
from headrace_responses import Plugin


def sse(*events: Any, named: bool = True) -> list[bytes]:
    """Events as they are streamed, one a piece; with their types as names, as the Responses API has them."""
    return [
        (f"event: {each['type']}\n" if named and "type" in each else "").encode()
        + b"data: "
        + json.dumps(each).encode()
        + b"\n\n"
        for each in events
    ]


class Scripted(Listening):
    """Answers every request with `reply`: a whole answer if it is a dict, a stream if it is a list of pieces.

    Attributes:
        requests: path and body of every request so far.
        hold: a stream waits for it before its last piece.
        cut: close the connection after the last piece, and do not end the answer.
    """

    PATH = "/v1"

    def __init__(self) -> None:
        self.reply: Any = {}
        self.status = 200
        self.requests: list[tuple[str, Any]] = []
        self.hold: asyncio.Event | None = None
        self.cut = False

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:"))
        self.requests.append((head.split(" ")[1], json.loads(await reader.readexactly(length))))
        await self._answer(writer)
        await writer.drain()
        return False

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n"
        if not isinstance(self.reply, list):
            body = json.dumps(self.reply).encode()
            writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            return
        writer.write(f"{head}Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for number, piece in enumerate(self.reply):
            if self.hold is not None and number == len(self.reply) - 1:
                await self.hold.wait()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        if not self.cut:
            writer.write(b"0\r\n\r\n")


class Names:
    """Who a caller is stands in the clear in the request."""

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-caller") or "ada"
        return Principal(id=name, endpoints=frozenset({"chat"}) if name == "chatter" else None)


class Asker:
    """A gateway and a client of it."""

    def __init__(self, client: httpx.AsyncClient, running: Any) -> None:
        self.client, self.gateway, self.url = client, running.gateway, running.url

    async def ask(self, caller: str = "ada", **fields: Any) -> httpx.Response:
        body = {"model": "test", "input": "hello", **fields}
        return await self.client.post("/v1/responses", json=body, headers={"x-caller": caller})

    async def events(self, **fields: Any) -> list[dict[str, Any]]:
        """Those of a stream."""
        return events_of((await self.ask(stream=True, **fields)).text)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


@pytest.fixture
async def backend() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with scripted:
        yield scripted


@pytest.fixture
def gateway(backend: Scripted) -> Callable[..., Any]:
    """`async with gateway("responses", store="memory") as asker`: the endpoints of the backend, and options."""

    @contextlib.asynccontextmanager
    async def run(*endpoints: str, tables: Any = None, plugins: Any = None, **options: Any) -> AsyncIterator[Asker]:
        document = {
            "backends": {
                "one": {"provider": "openai", "base_url": backend.url, "endpoints": list(endpoints) or ["chat"]}
            },
            "models": {"test": {"targets": ["one"], "retry": {"rounds": 1}}},
            **(tables or {}),
            "plugins": {"openai": {}, "responses": options},
        }
        added = {"names": Names, "responses": Plugin, **(plugins or {})}
        async with (
            serve(document, plugins=added) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
        ):
            yield Asker(client, running)

    return run


def said(text: str = "hi", **more: Any) -> dict[str, Any]:
    """A chat's whole answer."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **more.pop("choice", {})}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


def response(name: str = "resp_1", text: str = "hi", **more: Any) -> dict[str, Any]:
    """A whole answer of a backend that has the Responses API."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": f"msg_{name}", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 14,
    }
    own = {"id": name, "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": [item]}
    return {**own, "previous_response_id": None, "usage": usage, "user": None, "metadata": {}, **more}


def streamed(whole: dict[str, Any], kind: str = "response.completed") -> list[bytes]:
    """The same as a stream."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    delta = {"type": "response.output_text.delta", "delta": "hi", "item_id": "x", "output_index": 0, "content_index": 0}
    return sse({"type": "response.created", "response": begun}, delta, {"response": whole, "type": kind})


@pytest.fixture
def kit() -> Any:
    """The helpers of this file."""
    return type("Kit", (), {each.__name__: staticmethod(each) for each in (sse, said, response, streamed, events_of)})
