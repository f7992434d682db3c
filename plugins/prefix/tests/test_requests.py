"""The policy in a running gateway, with backends that have prefix caches and say what was in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.errors import ConfigError
from headrace.exchange import Exchange, Principal
from headrace.explain import explain
from headrace.testing import FakeBackend, Running, serve
from headrace_prefix import Plugin, Status

SYSTEM = "You are a helpful assistant. " * 60


class Named:
    """Callers are whoever they say they are."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key") or "nobody"
        return Principal(id=name, role="admin" if name == "root" else "user")


class Fleet:
    """A running gateway with some backends behind it."""

    def __init__(self, backends: list[Any], running: Running, client: httpx.AsyncClient) -> None:
        self.backends, self.running, self.client = backends, running, client

    @property
    def status(self) -> Status:
        plugin: Plugin = self.running.gateway.plugins["prefix"]
        return plugin.status()

    @property
    def asked(self) -> list[int]:
        return [backend.asked for backend in self.backends]

    async def ask(self, *turns: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": turn} for turn in (SYSTEM, *turns)]
        return await self.client.post("/v1/chat/completions", json={"model": "test", "messages": messages, **fields})


@contextlib.asynccontextmanager
async def run_fleet(backend_class: type[Any], count: int, **prefix: Any) -> AsyncIterator[Fleet]:
    async with contextlib.AsyncExitStack() as stack:
        backends = [backend_class() for _ in range(count)]
        for backend in backends:
            await stack.enter_async_context(backend)
        document = {
            "server": {"anonymous": True},
            "backends": {
                f"gpu{number}": {"provider": "openai", "base_url": backend.url, "model": "llama"}
                for number, backend in enumerate(backends)
            },
            "models": {"test": {"targets": [f"gpu{number}" for number in range(count)], "policy": "prefix"}},
            "plugins": {"openai": {}, "prefix": prefix},
        }
        running = await stack.enter_async_context(serve(document, {"named": Named, "prefix": Plugin}))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))
        yield Fleet(backends, running, client)


@pytest.fixture
def fleet(caching_backend: type[Any]) -> Any:
    """A context: a running gateway with so many backends behind it, whose `[plugins.prefix]` is the rest."""
    return lambda count=3, **prefix: run_fleet(caching_backend, count, **prefix)


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_a_conversation_stays_at_one_backend_and_what_it_reports_is_compared(
    fleet: Any, fields: dict[str, Any]
) -> None:
    async with fleet() as some:
        turns: list[str] = []
        for number in range(8):
            turns.append(f"Turn {number} of a conversation.")
            answer = await some.ask(*turns, **fields)
            assert answer.status_code == 200 and (b"usage" in answer.content) is not bool(fields)
        assert sorted(some.asked) == [0, 0, 8]
        status = some.status
        assert (status.predictions, status.checked, status.hits) == (7, 7, 7)
        home = next(each for each in status.targets.values() if each.blocks)
        assert home.reports and home.trusted and home.error < 0.1
        assert home.cached_tokens > 0.8 * home.prompt_tokens > 0


async def test_conversations_of_their_own_are_spread(fleet: Any) -> None:
    async with fleet() as some:
        for number in range(6):
            messages = [{"role": "user", "content": f"{number} " * 800}]
            await some.client.post("/v1/chat/completions", json={"model": "test", "messages": messages})
        assert some.asked == [2, 2, 2]


async def test_requests_at_the_same_time_with_one_new_prompt_meet_at_one_backend(fleet: Any) -> None:
    async with fleet() as some:
        for backend in some.backends:
            backend.hold.clear()
        tasks = [asyncio.create_task(some.ask(f"Question {number}")) for number in range(3)]
        async with asyncio.timeout(20):
            while sum(some.asked) < 3:
                await asyncio.sleep(0.005)
        for backend in some.backends:
            backend.hold.set()
        assert {(await task).status_code for task in tasks} == {200}
        assert sorted(some.asked) == [0, 0, 3]


async def test_tenants_with_salts_of_their_own_share_nothing(fleet: Any) -> None:
    async with fleet() as some:
        for salt in ("ada", "bob", "eve"):
            await some.ask("Hello", cache_salt=salt)
        assert some.asked == [1, 1, 1] and some.status.predictions == 0
        await some.ask("Hello", cache_salt="bob")
        assert some.status.predictions == 1


async def test_a_backend_whose_cache_is_gone_loses_trust_and_gets_it_back(fleet: Any) -> None:
    async with fleet(1, probe_every=2) as one:
        await one.ask("Hello")
        await one.ask("Hello")
        one.backends[0].caches = False
        one.backends[0].flush()
        while one.status.targets["gpu0"].trusted:
            await one.ask("Hello")
            assert one.backends[0].asked < 50
        one.backends[0].caches = True
        while not one.status.targets["gpu0"].trusted:
            await one.ask("Hello")
            assert one.backends[0].asked < 100


async def test_backends_that_report_nothing_keep_their_conversations(fleet: Any) -> None:
    async with fleet() as some:
        for backend in some.backends:
            backend.reports = False
        for number in range(12):
            await some.ask("Hello", f"{number}")
        assert sorted(some.asked) == [0, 0, 12] and some.status.checked == 0
        assert all(each.trusted for each in some.status.targets.values())


async def test_a_conversation_whose_backend_dies_moves_and_stays_where_it_went(fleet: Any) -> None:
    async with fleet() as some:
        await some.ask("Hello")
        home = some.asked.index(1)
        backend = some.backends[home]
        backend._server.close()
        await some.client.aclose()
        async with httpx.AsyncClient(base_url=some.running.url, timeout=30) as some.client:
            backend.status = 500  # on connections that are still open
            for number in range(4):
                assert (await some.ask("Hello", f"{number}")).status_code == 200
        assert sorted(some.asked[:home] + some.asked[home + 1 :]) == [0, 4]
        assert some.status.targets[f"gpu{home}"].predictions >= 1


async def test_administrators_see_what_is_known_and_nobody_else_does(fleet: Any) -> None:
    async with fleet(admin_api=True) as some:
        await some.ask("Hello")
        await some.ask("Hello")
        assert (await some.client.get("/admin/prefix")).status_code == 403
        answer = await some.client.get("/admin/prefix", headers={"x-api-key": "root"})
        assert msgspec.json.decode(answer.content, type=Status) == some.status and some.status.predictions == 1


async def test_nothing_is_shown_unless_it_is_asked_for(fleet: Any) -> None:
    async with fleet() as some:
        assert (await some.client.get("/admin/prefix", headers={"x-api-key": "root"})).status_code == 404


async def test_usage_is_asked_for_where_the_policy_is_used_and_verifies(fleet: Any) -> None:
    for prefix, asked in ((dict[str, Any](), True), ({"verify": False}, False)):
        async with fleet(1, **prefix) as one:
            await one.ask("Hello", stream=True)
            assert (b"include_usage" in one.backends[0].requests[-1][2]) is asked


async def test_explain_says_what_is_known_of_each_target(fleet: Any) -> None:
    async with fleet() as some:
        report = await explain(some.running.gateway, model="test", key=None)
        assert report["policy"] == "prefix"
        assert {each["why"] for each in report["targets"]} == {
            "nothing of the prompt is known to be cached, 0 in flight"
        }


async def test_variants_weigh_otherwise_and_know_the_same() -> None:
    async with FakeBackend() as one, FakeBackend() as two:
        tables = {
            "backends": {
                name: {"provider": "openai", "base_url": backend.url} for name, backend in (("one", one), ("two", two))
            },
            "models": {
                "test": {"targets": ["one", "two"], "policy": "prefix"},
                "even": {"targets": ["one", "two"], "policy": "evenly"},
            },
            "plugins": {"openai": {}, "prefix": {"policies": {"evenly": {"balance": 1.0, "pressure": 2.0}}}},
        }
        async with serve({"server": {"anonymous": True}, **tables}, {"prefix": Plugin}) as running:
            assert set(running.gateway.policies) >= {"prefix", "evenly"}
            assert running.gateway.models.find("even").policy.name == "evenly"


async def test_a_variant_may_not_be_called_like_another_policy() -> None:
    with pytest.raises(ConfigError, match="there is a policy of that name"):
        async with serve({"plugins": {"prefix": {"policies": {"prefix": {}}}}}, {"prefix": Plugin}):
            pass
