"""A gateway with budgets, a backend that counts, callers who are whoever they say they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.limits import Budget
from headrace.testing import FakeBackend, Running, serve
from headrace_budget import Plugin

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
PRICES = {"test": {"input": 1_000.0, "output": 10_000.0}}
"""A thousandth of a dollar for a token of a prompt, a hundredth for one of an answer: what the backend says to a
request that is not streamed is worth 0.015, for it takes 5 and 1."""
FLAT = {"test": {"input": 0, "output": 0, "request": 1}}
"""A dollar for each request."""
OWN = {"poor": Budget(cost_per_day=0.05), "spent": Budget(cost_per_month=0)}


class Named:
    """`X-Api-Key: NAME/TEAM`."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self._known: dict[str, Principal] = {}

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        said = exchange.header(b"x-api-key") or "nobody"
        name, _, team = said.partition("/")
        return self._known.setdefault(said, Principal(id=name, team=team or None, budget=OWN.get(name)))


class Clock:
    """Stands still until it is set."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate(NamedTuple):
    """A running gateway with budgets."""

    backend: FakeBackend
    client: httpx.AsyncClient
    running: Running

    async def ask(self, who: str = "ada", path: str = "chat/completions", **fields: Any) -> httpx.Response:
        body = {**CHAT, **fields} if path == "chat/completions" else {"model": "test", **fields}
        return await self.client.post(f"/v1/{path}", json=body, headers={"x-api-key": who})

    async def used(self) -> dict[str, int]:
        """What is used of each budget, by the ledger's key without the plugin's name."""
        ledger: Any = self.running.gateway.ledger
        return {key.removeprefix("budget:"): used for key, used in await ledger.scan("sum", "budget:")}

    async def used_in_all(self) -> int:
        """What is used of the only budget."""
        (used,) = (await self.used()).values()
        return used

    @property
    def sent(self) -> list[Any]:
        """What the backend was asked."""
        return [json.loads(body) for _, _, body in self.backend.requests]


@contextlib.asynccontextmanager
async def _budgeted(
    *limits: dict[str, Any], state_dir: Path | None = None, clock: Clock | None = None, plugins: Any = (), **config: Any
) -> AsyncIterator[Gate]:
    timed = type("Plugin", (Plugin,), {"clock": clock}) if clock else Plugin
    classes = {"named": Named, **dict(plugins), "budget": timed}
    async with FakeBackend() as backend:
        document = backend.config(
            server={"state_dir": str(state_dir)} if state_dir else {},
            plugins={"openai": {}, "budget": {"limits": list(limits), "prices": PRICES, **config}},
        )
        async with (
            serve(document, classes) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            yield Gate(backend, client, running)


@pytest.fixture
def budgeted() -> Any:
    """A context with a `Gate`: `async with budgeted({"cost_per_day": 1}, clock=…, …options of the plugin)`."""
    return _budgeted


@pytest.fixture
def flat() -> dict[str, Any]:
    """Prices by which each request costs a dollar, whatever it takes."""
    return FLAT


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at noon of 2030-05-17 UTC, a Friday."""
    return Clock(1_905_249_600.0)
