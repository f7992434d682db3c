"""Backends that say what they are told to: one with chats alone, and one that speaks Anthropic's API."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import chat
from headrace.dialects import Endpoint
from headrace.exchange import Exchange
from headrace.testing import Listening, Running, serve
from headrace_anthropic import Plugin
from headrace_anthropic.dialect import DIALECT, MessagesPeek

KEY, VERSION = "sk-ant-upstream", "2023-06-01"
TEXT_EVENTS = "text/event-stream; charset=utf-8"


class Asked(NamedTuple):
    """A request that a backend got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Backend(Listening):
    """An HTTP server that gives each request the answer it has been told; a stream's pieces go out one by one.

    Attributes:
        cut: whether the connection is closed in the midst of a stream.
        hold: if set, what a stream waits for before its last piece.
        left: set once a client has closed its connection while a stream was held.
    """

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = {}
        self.pieces: list[bytes] | None = None
        self.headers: dict[str, str] = {}
        self.cut = False
        self.hold: asyncio.Event | None = None
        self.left = asyncio.Event()
        self.asked: list[Asked] = []

    @property
    def root(self) -> str:
        return self.url

    @property
    def last(self) -> Asked:
        return [each for each in self.asked if each.method == "POST"][-1]

    def stream(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers, json.loads(body) if body else None)
        self.asked.append(asked)
        status, answer = self.answer(asked)
        if self.pieces is not None and status == 200 and (asked.body or {}).get("stream"):
            return await self._stream(reader, writer, self.pieces)
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        return True

    def answer(self, asked: Asked) -> tuple[int, Any]:
        return self.status, self.body

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: list[bytes]) -> bool:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {TEXT_EVENTS}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for number, piece in enumerate(pieces, 1):
            if self.hold is not None and number == len(pieces):
                held, gone = asyncio.ensure_future(self.hold.wait()), asyncio.ensure_future(reader.read(1))
                await asyncio.wait((held, gone), return_when=asyncio.FIRST_COMPLETED)
                held.cancel()
                if gone.done():
                    self.left.set()
                    return False
                gone.cancel()
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if self.cut:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


REQUEST_FIELDS = frozenset(
    (
        *("model", "messages", "max_tokens", "system", "metadata", "stop_sequences", "stream", "temperature", "top_p"),
        *("top_k", "tools", "tool_choice", "thinking", "output_config", "service_tier", "container", "mcp_servers"),
        *("context_management", "cache_control"),
    )
)


class AnthropicBackend(Backend):
    """Checks requests as Anthropic does, and lists models and counts tokens as it does."""

    def answer(self, asked: Asked) -> tuple[int, Any]:
        wrong = self._wrong(asked)
        if wrong is not None:
            return wrong
        if asked.path.startswith("/v1/models"):
            entry = {"type": "model", "id": "claude-test", "display_name": "Test", "created_at": "2026-01-01T00:00:00Z"}
            return 200, {"data": [entry], "has_more": False, "first_id": "claude-test", "last_id": "claude-test"}
        if asked.path == "/v1/messages/count_tokens":
            return 200, {"input_tokens": 2095}
        return self.status, self.body

    def _wrong(self, asked: Asked) -> tuple[int, Any] | None:
        if asked.headers.get("x-api-key") != KEY:
            return refusal(401, "authentication_error", "invalid x-api-key")
        if "anthropic-version" not in asked.headers:
            return refusal(400, "invalid_request_error", "anthropic-version: header is required")
        if asked.method == "GET":
            return None
        body = asked.body
        extra = next((name for name in body if name not in REQUEST_FIELDS), None)
        if extra is not None:
            return refusal(400, "invalid_request_error", f"{extra}: Extra inputs are not permitted")
        if asked.path == "/v1/messages" and not isinstance(body.get("max_tokens"), int):
            return refusal(400, "invalid_request_error", "max_tokens: Field required")
        if not body["messages"]:
            return refusal(400, "invalid_request_error", "messages: at least one message is required")
        for number, message in enumerate(body["messages"]):
            if message["role"] not in ("user", "assistant") or not message["content"]:
                return refusal(400, "invalid_request_error", f"messages.{number}: not as it should be")
        return None


def refusal(status: int, kind: str, message: str) -> tuple[int, Any]:
    """An error as Anthropic says it."""
    return status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5"}


def sse(*events: dict[str, Any]) -> list[bytes]:
    """Events as Anthropic streams them."""
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events]


def read_sse(data: bytes) -> list[dict[str, Any]]:
    """Events of a Messages stream; each must be named as its data says."""
    found = []
    for block in data.decode().split("\n\n"):
        if block:
            name, text = block.split("\n")
            event = json.loads(text.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def read_chat(data: bytes) -> list[Any]:
    """The data of a chat's events; the end marker as it is."""
    lines = [block.removeprefix("data: ") for block in data.decode().split("\n\n") if block]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def assembled(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream tells, by the rules of Anthropic's documentation: blocks one after the other, each from
    its start to its stop, between the message's start and its stop."""
    events = iter([event for event in events if event["type"] != "ping"])
    message: dict[str, Any] = next(events)["message"]
    assert message["content"] == []
    said: dict[str, Any] | None = None
    text = ""
    for event in events:
        kind = event["type"]
        if kind == "content_block_start":
            assert (said, event["index"]) == (None, len(message["content"]))
            said, text = event["content_block"], ""
        elif kind == "content_block_delta":
            assert said is not None and event["index"] == len(message["content"])
            field = {"tool_use": "partial_json"}.get(said["type"], said["type"])
            if event["delta"]["type"] == "signature_delta":
                said["signature"] = event["delta"]["signature"]
            elif field == "partial_json":
                text += event["delta"]["partial_json"]
            else:
                said[field] += event["delta"][field]
        elif kind == "content_block_stop":
            assert said is not None and event["index"] == len(message["content"])
            if said["type"] == "tool_use":
                said["input"] = json.loads(text or "{}")
            message["content"].append(said)
            said = None
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
        elif kind == "message_stop":
            assert said is None and next(events, None) is None
            return message
    raise AssertionError("the stream has no end")


class Site(NamedTuple):
    """A gateway whose models are `chat` (chats alone), `claude` (Anthropic's API), and `both`, in this order."""

    client: httpx.AsyncClient
    running: Running
    chat: Backend
    claude: AnthropicBackend

    async def messages(self, model: str = "chat", path: str = "/v1/messages", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64, **fields}
        sent = {name: value for name, value in body.items() if value is not None}
        return await self.client.post(path, json=sent)

    async def chats(self, model: str = "claude", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)


@contextlib.asynccontextmanager
async def running_site(
    options: dict[str, Any], plugin_classes: dict[str, Any] | None = None, **tables: Any
) -> AsyncIterator[Site]:
    async with Backend() as plain, AnthropicBackend() as claude:
        backends = {
            "plain": {"provider": "openai", "base_url": plain.root, "model": "local-model"},
            "claude": {
                "provider": "anthropic",
                "base_url": claude.root,
                "model": "claude-test",
                "api_key": KEY,
                "options": options,
            },
        }
        once = {"rounds": 1}
        document = {
            "server": {"anonymous": True},
            "backends": backends,
            "models": {
                "chat": {"targets": ["plain"], "retry": once},
                "claude": {"targets": ["claude"], "retry": once},
                "both": {"targets": ["claude", "plain"], "retry": once},
            },
            **tables,
        }
        plugins = {"openai": {}, "anthropic": {}, **document.pop("plugins", {})}
        async with (
            serve({**document, "plugins": plugins}, plugin_classes) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            yield Site(client, running, plain, claude)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site({}) as made:
        yield made


@pytest.fixture
def site_with() -> Callable[..., Any]:
    """A context with a gateway of the test's own: options of the backend `claude`, and tables of the configuration."""
    return running_site


def an_exchange(body: bytes = b"", **fields: Any) -> Exchange:
    """A request to `/v1/messages` that nobody sends."""
    endpoint = Endpoint("messages", "/v1/messages", MessagesPeek, DIALECT)
    scope = {"headers": [], "method": "POST", "path": endpoint.path, "client": ("127.0.0.1", 1)}
    given = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], **fields}
    exchange = Exchange(id="r1", endpoint=endpoint, scope=scope)
    exchange.take_body(body or json.dumps(given).encode())
    return exchange


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers of this file, for tests to use."""
    helpers = (sse, read_sse, read_chat, assembled, refusal, an_exchange, Backend, AnthropicBackend)
    names = {each.__name__: staticmethod(each) for each in helpers}
    return type("Kit", (), {**names, "Plugin": Plugin, "chat": chat, "KEY": KEY})
