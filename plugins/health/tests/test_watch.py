"""When a backend is checked. The time is ours; what waits is told to go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from headrace.errors import UpstreamError
from headrace_health.checks import Found
from headrace_health.config import Rules
from headrace_health.judge import Judge
from headrace_health.watch import Timer, Watch


class Steps(Timer):
    """Goes on when it is told to, or when what is waited for happens."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []
        """How long was to be waited, for an event or the time."""
        self.sleeps: list[float] = []
        """How long was to be slept."""
        self.waiting = asyncio.Event()
        self._go_on = asyncio.Event()

    def now(self) -> float:
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.waiting.set()
        either = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._go_on.wait())]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in either:
                each.cancel()
        if self._go_on.is_set():
            self.time += seconds
            self._go_on.clear()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds

    async def idle(self) -> None:
        """Until the watch waits for its next check."""
        async with asyncio.timeout(20):
            await self.waiting.wait()
        self.waiting.clear()

    async def pass_by(self) -> None:
        """Let the time of the next check come, and the check end."""
        self._go_on.set()
        await self.idle()


class Backend:
    """What is checked: counts how many checks are on their way."""

    def __init__(self) -> None:
        self.answer: Found | Exception = Found("well")
        self.checks = self.at_once = self.most_at_once = 0
        self.hangs = False
        self.meanwhile: Callable[[], None] = lambda: None

    async def __call__(self, target: Any) -> Found:
        self.checks += 1
        self.at_once += 1
        self.meanwhile()
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await (asyncio.Event().wait() if self.hangs else asyncio.sleep(0))
        finally:
            self.at_once -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


Watched = Callable[..., Any]


@pytest.fixture
def watched(target: Any) -> Watched:
    @contextlib.asynccontextmanager
    async def run(
        backend: Backend, tell: Callable[..., None] = lambda watch, found: None, **rules: Any
    ) -> AsyncIterator[tuple[Watch, Steps]]:
        steps = Steps()
        judge = Judge(target(), Rules(**{"jitter": 0.0, **rules}), lambda: steps.time)
        watch = Watch(judge, backend, tell, steps)
        task = asyncio.create_task(watch.run())
        try:
            await steps.idle()
            yield watch, steps
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return run


async def test_the_first_check_comes_at_once(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend) as (_, steps):
        assert (backend.checks, steps.time) == (1, 0.0)


async def test_then_they_come_at_the_interval(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend, interval=7.0) as (_, steps):
        await steps.pass_by()
        assert (backend.checks, steps.waits) == (2, [7.0, 7.0])


async def test_each_interval_is_a_little_longer_or_shorter(watched: Watched) -> None:
    async with watched(Backend(), interval=10.0, jitter=0.1) as (_, steps):
        for _ in range(30):
            await steps.pass_by()
        assert all(9.0 <= each <= 11.0 for each in steps.waits)
        assert len(set(steps.waits)) > 1


async def test_a_request_that_fails_has_it_checked_before_its_time(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend, interval=10.0, fast_interval=1.0) as (watch, steps):
        steps.time += 5.0
        watch.request_ended("broke off", refused=False)
        await steps.idle()
        assert (backend.checks, steps.sleeps) == (2, [])


async def test_but_not_sooner_than_the_fast_interval_allows(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend, interval=10.0, fast_interval=1.0) as (watch, steps):
        steps.time += 0.25
        watch.request_ended("broke off", refused=False)
        await steps.idle()
        assert (backend.checks, steps.sleeps) == (2, [0.75])


async def test_and_once_only(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend) as (watch, steps):
        watch.request_ended("broke off", refused=False)
        await steps.idle()
        for _ in range(20):  # a third check would have come by then
            await asyncio.sleep(0)
        assert backend.checks == 2


async def test_a_request_that_went_well_changes_nothing(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend) as (watch, steps):
        watch.request_ended("", refused=False)
        await steps.pass_by()
        assert backend.checks == 2


async def test_never_is_more_than_one_check_on_its_way(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend, failures=1000) as (watch, steps):
        for _ in range(20):
            watch.request_ended("broke off", refused=False)
            watch.request_ended("", refused=False)
            watch.request_ended("broke off", refused=False)
            await steps.idle()
        assert (backend.checks, backend.most_at_once) == (21, 1)


async def test_a_check_that_takes_too_long_has_failed(watched: Watched) -> None:
    backend = Backend()
    backend.hangs = True
    async with watched(backend, timeout=0.05) as (watch, _):
        state = watch.target.state
        assert (state.condition, state.reason) == ("down", "no answer within 0.05 s")
        assert backend.at_once == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UpstreamError("The connection to the backend broke."), "The connection to the backend broke."),
        (UpstreamError("No.", code="upstream_auth"), "it refuses our key"),
        (KeyError("x"), "the check failed: KeyError"),
        (TimeoutError(), "the check failed: TimeoutError"),
    ],
)
async def test_a_check_that_raises_has_failed_and_the_next_one_comes(
    watched: Watched, error: Exception, reason: str
) -> None:
    backend = Backend()
    backend.answer = error
    async with watched(backend) as (watch, steps):
        assert watch.target.state.reason == reason
        await steps.pass_by()
        assert backend.checks == 2


async def test_whoever_fails_to_hear_of_it_does_not_end_the_checks(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(watch: Watch, found: Found | None) -> None:
        raise KeyError("x")

    backend = Backend()
    async with watched(backend, fail) as (_, steps):
        await steps.pass_by()
    assert (backend.checks, len([each for each in caplog.records if each.exc_info])) == (2, 2)


async def test_how_long_a_check_took_is_kept(watched: Watched) -> None:
    backend = Backend()
    async with watched(backend) as (watch, steps):

        def take_long() -> None:
            steps.time += 0.25

        backend.meanwhile = take_long
        await steps.pass_by()
        assert watch.latency == 0.25
