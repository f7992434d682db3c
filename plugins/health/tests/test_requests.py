"""What requests tell of a backend, through a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.testing import FakeBackend


@pytest.fixture
def alone(watching: Any) -> Any:
    """A context: a gateway with one backend, and that backend."""

    @contextlib.asynccontextmanager
    async def run(**health: Any) -> AsyncIterator[tuple[Any, FakeBackend]]:
        async with FakeBackend() as backend, watching({"gpu": backend.url}, **health) as running:
            yield running, backend

    return run


def checks_of(backend: FakeBackend) -> int:
    return sum(path == "/v1/models" for path, _, _ in backend.requests)


async def test_the_first_failure_has_it_checked_at_once(alone: Any) -> None:
    async with alone() as (running, backend):
        backend.status = 500
        await running.ask()
        await running.until(lambda: checks_of(backend) > 1)


async def test_a_backend_that_is_gone_is_down_without_its_time_having_come(
    engine: Any, listing: Any, watching: Any
) -> None:
    async with engine({"/v1/models": listing("x")}) as server, watching({"gpu": server.url}) as running:
        assert running.state("gpu").condition == "up"
        await server.stop()
        await running.ask()
        await running.becomes("gpu", "down")
        assert running.state("gpu").reason == "The backend cannot be reached."


async def test_and_up_again_when_it_is_back(engine: Any, listing: Any, watching: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server, watching({"gpu": server.url}, interval=0.05) as running:
        await server.stop()
        await running.becomes("gpu", "down")
        await server.start()
        await running.becomes("gpu", "up")


async def test_several_failures_in_a_row_are_enough_whatever_checks_say(
    engine: Any, listing: Any, watching: Any
) -> None:
    answers = {"/v1/models": listing("x"), "/v1/chat/completions": (500, {"error": {}})}
    async with engine(answers) as server, watching({"gpu": server.url}, failures=3) as running:
        for _ in range(3):
            await running.ask()
        state = running.state("gpu")
        assert state.condition == "down"
        assert state.reason == "3 tries in a row failed, the last with: The backend failed with status 500."


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_takes_it_out_with_the_first_request(
    engine: Any, listing: Any, watching: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers = {"/v1/models": listing("x"), "/v1/chat/completions": (status, {"error": {}})}
    async with engine(answers) as server, watching({"gpu": server.url}) as running:
        caplog.clear()
        await running.ask()
        state = running.state("gpu")
        assert (state.condition, "key" in state.reason) == ("down", True)
    errors = [each for each in caplog.records if each.name == "headrace.health" and each.levelno == logging.ERROR]
    assert len(errors) == 1


@pytest.mark.parametrize("status", [429, 400, 404, 422])
async def test_limits_and_the_client_s_own_mistakes_do_not_count(
    engine: Any, listing: Any, watching: Any, status: int
) -> None:
    answers = {"/v1/models": listing("x"), "/v1/chat/completions": (status, {"error": {}})}
    async with engine(answers) as server, watching({"gpu": server.url}, failures=1) as running:
        await running.ask()
        await running.ask()  # by its end everybody has heard of the first
        assert running.state("gpu").condition == "up"
        assert running.state("gpu").failure == ""


async def test_a_client_that_leaves_does_not_count(alone: Any) -> None:
    async with alone(failures=1) as (running, backend):
        backend.silent = True
        asked = asyncio.create_task(running.ask())
        await running.until(lambda: running.state("gpu").in_flight)
        asked.cancel()
        await running.until(lambda: not running.state("gpu").in_flight)
        backend.silent = False
        await running.ask()  # by its end everybody has heard of the first
        assert (running.state("gpu").condition, running.state("gpu").failure) == ("up", "")


async def test_a_stream_that_is_cut_counts(alone: Any) -> None:
    async with alone(failures=1) as (running, backend):
        backend.cut_after = 1
        await running.ask(stream=True)
        await running.becomes("gpu", "down")


async def test_requests_that_go_well_bring_it_up(alone: Any) -> None:
    async with alone(failures=1, rise=2) as (running, backend):
        backend.status = 500
        await running.ask()
        assert running.state("gpu").condition == "down"
        backend.status = 200
        await running.ask()
        await running.ask()
        await running.becomes("gpu", "up")


async def test_checks_have_connections_of_their_own(watching: Any) -> None:
    """Else a backend that is merely busy would seem to be down."""
    async with FakeBackend() as backend:
        table = {"base_url": backend.url, "max_connections": 1, "timeouts": {"connect": 0.2}}
        backend.pause = 30.0
        async with watching({"gpu": table}, interval=0.05) as running:
            asked = asyncio.create_task(running.ask())
            await running.until(lambda: running.state("gpu").in_flight)
            before = checks_of(backend)
            await running.until(lambda: checks_of(backend) > before + 2)
            assert running.state("gpu").condition == "up"
            asked.cancel()


async def test_a_backend_that_is_not_checked_is_judged_by_its_requests(watching: Any) -> None:
    async with FakeBackend() as backend:
        only = {"targets": {"gpu": {"kind": "none"}}, "failures": 1}
        async with watching({"gpu": backend.url}, **only) as running:
            assert (running.state("gpu").condition, checks_of(backend)) == ("up", 0)
            backend.status = 500
            await running.ask()
            assert running.state("gpu").condition == "down"
