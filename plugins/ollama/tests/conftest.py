"""A stand-in for Ollama, and gateways in front of it."""

from __future__ import annotations

import contextlib
import json
import runpy
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.config import Strict
from headrace.testing import serve
from headrace_ollama import Plugin

FAKE = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fake_ollama.py"))))
HELLO = [{"role": "user", "content": "hi"}]


class Client:
    """A gateway in front of a stand-in, and how it is asked."""

    def __init__(self, http: httpx.AsyncClient, fake: Any, gateway: Any) -> None:
        self.http, self.fake, self.gateway = http, fake, gateway

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        return await self.http.post(path, json={"model": "m", **fields})

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", **{"messages": HELLO, **fields})

    async def answer(self, **fields: Any) -> Any:
        """The only choice of a chat."""
        reply = await self.chat(**fields)
        assert reply.status_code == 200, reply.text
        (choice,) = reply.json()["choices"]
        return choice

    async def events(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        """The events of a stream, decoded; the last one as a string if it is the end marker."""
        given = {"messages": HELLO} if "chat" in path else {}
        async with self.http.stream("POST", path, json={"model": "m", "stream": True, **given, **fields}) as reply:
            text = (await reply.aread()).decode()
            assert reply.status_code == 200, text
            assert reply.headers["content-type"].startswith("text/event-stream")
        data = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
        return [each if each == "[DONE]" else json.loads(each) for each in data]


def document(url: str, *, model: str | None = "llama3.2", options: Any = None, **backend: Any) -> dict[str, Any]:
    table = {"provider": "ollama", "base_url": url, "options": options or {}, **backend}
    if model is not None:
        table["model"] = model
    return {
        "server": {"anonymous": True},
        "backends": {"gpu": table},
        "models": {"m": {"targets": ["gpu"], "retry": {"rounds": 1}}},
        "plugins": {"ollama": {}},
    }


Site = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def site() -> Site:
    """Runs a stand-in and a gateway: `site(model=…, options=…, tables=…)`; other arguments are the backend's keys."""

    @contextlib.asynccontextmanager
    async def run(tables: Any = None, plugins: Any = None, **backend: Any) -> AsyncIterator[Client]:
        async with FAKE.FakeOllama() as fake:
            settings = {**document(fake.url, **backend), **(tables or {})}
            async with (
                serve(settings, plugins={"ollama": Plugin, **(plugins or {})}) as running,
                httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as http,
            ):
                yield Client(http, fake, running.gateway)

    return run


@pytest.fixture
def counting() -> type[Any]:
    """A plugin that wants token counts; `counted` has them."""

    class Counting:
        counted: list[Any] = []

        class Config(Strict, frozen=True):
            pass

        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def authorize(self, exchange: Any) -> None:
            exchange.usage_wanted = True

        @hookimpl
        async def on_complete(self, exchange: Any, outcome: Any) -> None:
            self.counted.append(outcome.usage)

    return Counting


@pytest.fixture
def limiting() -> type[Any]:
    """A plugin that lets answers have five tokens."""

    class Limiting:
        class Config(Strict, frozen=True):
            pass

        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        def admit(self, exchange: Any) -> None:
            exchange.answer_limit = 5

    return Limiting


@pytest.fixture
def kit() -> Any:
    """`FakeOllama`, `CUT`, `SILENCE`, and `document`, which makes a configuration."""
    return SimpleNamespace(**vars(FAKE), document=document)
