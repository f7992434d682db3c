"""Gateways with metrics, and what a scrape of them says."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace import hookimpl
from headrace.errors import RateLimited
from headrace.exchange import Exchange, Principal, Reply
from headrace.testing import COMPLETION, FakeBackend, Running, serve
from headrace_metrics import Plugin

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


class Scrape:
    """What a scrape says: every sample by its name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of that name that have these labels."""
        return sum(each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items())

    def values(self, name: str, label: str) -> set[str]:
        """Of a label, in all samples of that name."""
        return {each.labels.get(label, "") for each in self.samples if each.name == name}


class Named:
    """Callers are whoever they say they are."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key")
        role = {"root": "admin", "prometheus": "metrics"}.get(name or "", "user")
        return Principal(id=name, role=role) if name else None  # type: ignore[arg-type]


class Moody:
    """Does what the request's header `X-Do` says."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        if exchange.header(b"x-do") == "refuse":
            raise RateLimited("No more.")
        if exchange.header(b"x-do") == "wait":
            exchange.state["queue"] = 0.3

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        if exchange.header(b"x-do") != "cache":
            return None
        return Reply(200, [(b"content-type", b"application/json")], content=COMPLETION, source="cache")


class Measured(NamedTuple):
    """A running gateway with metrics, and its backend."""

    client: httpx.AsyncClient
    running: Running
    backend: FakeBackend

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["metrics"]
        return plugin

    async def ask(self, do: str = "", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers={"x-do": do})

    async def scrape(self) -> Scrape:
        answer = await self.client.get("/metrics", headers={"x-api-key": "prometheus"})
        assert answer.status_code == 200, answer.text
        return Scrape(answer.text)


@contextlib.asynccontextmanager
async def run_measured(
    config: Mapping[str, Any] | None = None, plugins: Mapping[str, type[Any]] | None = None, **tables: Any
) -> AsyncIterator[Measured]:
    async with FakeBackend() as backend:
        document = backend.config(**tables)
        document["plugins"]["metrics"] = dict(config or {})
        classes: dict[str, type[Any]] = {"named": Named, "metrics": Plugin, "moody": Moody, **(plugins or {})}
        async with (
            serve(document, classes) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30, headers={"x-api-key": "ada"}) as client,
        ):
            yield Measured(client, running, backend)


async def poll(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture(scope="session")
def scraped() -> type[Scrape]:
    return Scrape


@pytest.fixture(scope="session")
def measured() -> Any:
    """A context: a gateway that counts. Its model `test` is a FakeBackend; `X-Do: refuse`, `wait`, `cache` on a request
    has it refused, have waited, or answered without a backend."""
    return run_measured


@pytest.fixture(scope="session")
def until() -> Any:
    return poll


@pytest.fixture(scope="session")
def check_text() -> Callable[[str], None]:
    """Fails if Prometheus's own tool finds fault with a scrape."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")

    def check(text: str) -> None:
        done = subprocess.run([str(promtool), "check", "metrics"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    return check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "metrics"
