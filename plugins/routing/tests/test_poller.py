"""Engines are asked for their load, as long as somebody wants to know, whatever they answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headrace.testing import COMPLETION, Listening, serve
from headrace_routing import Plugin, polled
from headrace_routing.config import MetricsConfig
from headrace_routing.engine import Loads
from headrace_routing.poller import Poller

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


class Engine(Listening):
    """Answers chats, tells its metrics, and keeps who asked for them."""

    def __init__(self) -> None:
        self.metrics: bytes | None = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"
        """None: it never answers."""
        self.status = b"200 OK"
        self.type = b"text/plain; version=0.0.4; charset=utf-8"
        self.heads: list[str] = []
        """Of the requests for metrics."""
        self.chats = 0
        self.asked = asyncio.Event()
        self.url = ""

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("POST"):
            self.chats += 1
            self._answer(writer, b"application/json", COMPLETION)
        else:
            self.heads.append(head)
            self.asked.set()
            if self.metrics is None:
                await reader.read()
            self._answer(writer, self.type, self.metrics or b"")
        await writer.drain()
        return False

    def _answer(self, writer: asyncio.StreamWriter, kind: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (self.status, kind, len(body)) + body)


def document(url: str, policy: str = "queue_aware", **metrics: Any) -> dict[str, Any]:
    return {
        "server": {"anonymous": True},
        "backends": {"gpu": {"provider": "openai", "base_url": url, "api_key": "sk-gpu"}},
        "models": {"test": {"targets": ["gpu"], "policy": policy}},
        "plugins": {"openai": {}, "routing": {"metrics": metrics}},
    }


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_engines_are_asked_again_and_again_at_their_root_with_the_targets_key() -> None:
    async with (
        Engine() as engine,
        serve(document(engine.url, interval=0.05), {"routing": Plugin}) as running,
    ):
        state = running.gateway.models.find("test").targets[0].state
        await until(lambda: state.engine is not None)
        assert (state.engine.running, state.engine.waiting) == (3, 1)  # type: ignore[union-attr]
        engine.metrics = b"vllm:num_requests_running 7\n"
        await until(lambda: state.engine is not None and state.engine.running == 7)
        lines = engine.heads[-1].lower().split("\r\n")
        assert lines[0] == "get /metrics http/1.1" and "authorization: bearer sk-gpu" in lines


async def test_with_another_policy_nobody_is_asked() -> None:
    async with (
        Engine() as engine,
        serve(document(engine.url, "least_busy", interval=0.05), {"routing": Plugin}) as running,
    ):
        assert polled(running.gateway) == []
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "routing-poller"]


async def test_an_engine_that_another_plugin_wants_to_hear_of_is_asked_whatever_the_policy() -> None:
    async with serve(document("http://gpu", "least_busy"), {"routing": Plugin}) as running:
        running.gateway.loads_wanted.add("gpu")
        assert [each.name for each in polled(running.gateway)] == ["gpu"]


async def test_when_the_gateway_stops_the_asking_stops_even_in_the_middle() -> None:
    engine = Engine()
    engine.metrics = None
    async with engine:
        async with serve(document(engine.url), {"routing": Plugin}):
            await engine.asked.wait()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "routing-poller"]


async def test_targets_behind_a_policy_that_picks_are_asked_too_each_once() -> None:
    whole = document("http://gpu")
    whole["models"]["other"] = {"targets": ["gpu"], "policy": "mine"}
    whole["plugins"]["routing"] = {"policies": {"mine": {"kind": "pick", "otherwise": "queue_aware"}}}
    async with serve({**whole, "plugins": {**whole["plugins"]}}, {"routing": Plugin}) as running:
        assert [each.name for each in polled(running.gateway)] == ["gpu"]


@contextlib.asynccontextmanager
async def polling(engine: Engine, **metrics: Any) -> AsyncIterator[tuple[Poller, Any]]:
    """A poller that asks only when told to, and its target."""
    async with serve(document(engine.url, "least_busy"), {"routing": Plugin}) as running:
        target = running.gateway.models.find("test").targets[0]
        config = MetricsConfig(**metrics)
        yield Poller(config, running.gateway.upstream, [target], Loads(), random.Random(0)), target


async def test_a_failure_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.routing")
    async with Engine() as engine, polling(engine) as (poller, target):
        await poller.poll(target)
        engine.status = b"500 Oh"
        for _ in range(3):
            await poller.poll(target)
        engine.status = b"200 OK"
        for _ in range(2):
            await poller.poll(target)
    said = [(each.levelname, each.message) for each in caplog.records if each.name == "headrace.routing"]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert said[0][1].startswith("target gpu: its load cannot be read: target gpu answered 500")
    assert said[1][1] == "target gpu: its load can be read again"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": b"process_cpu_seconds_total 3\n"}, "/metrics answered 200 and tells no engine's load"),
        ({"metrics": b"\xff\xfe\x00"}, "/metrics answered 200 and tells no engine's load"),
        ({"status": b"404 No", "metrics": b'{"detail":"Not Found"}'}, "/metrics answered 404"),
        ({"type": b"text/html", "metrics": b"<html>"}, "answered 200"),
        ({"metrics": None}, "no answer within 0.2 s"),
        ({"url": "http://127.0.0.1:9"}, "ClientConnectorError"),
    ],
)
async def test_whatever_an_engine_answers_what_it_said_before_is_kept(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    engine = Engine()
    async with engine:
        for name, value in changes.items():
            setattr(engine, name, value)
        async with polling(engine, timeout=0.2) as (poller, target):
            before = target.state.engine
            await poller.poll(target)
            assert target.state.engine is before
    assert words in "".join(each.message for each in caplog.records if each.name == "headrace.routing")


async def test_requests_go_where_the_engine_has_less_to_do() -> None:
    async with Engine() as idle, Engine() as full:
        full.metrics = b"vllm:num_requests_running 40\n"
        whole = document(full.url, interval=0.05)
        whole["backends"]["idle"] = {"provider": "openai", "base_url": idle.url}
        whole["models"]["test"]["targets"] = ["gpu", "idle"]
        async with serve(whole, {"routing": Plugin}) as running, httpx.AsyncClient(base_url=running.url) as client:
            targets = running.gateway.models.find("test").targets
            await until(lambda: all(each.state.engine is not None for each in targets))
            for _ in range(5):
                answer = await client.post("/v1/chat/completions", json=CHAT)
                assert answer.status_code == 200
        assert (full.chats, idle.chats) == (0, 5)
