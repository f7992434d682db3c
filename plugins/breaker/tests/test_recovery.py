"""Backends that come back: who tries them, how soon, and how many at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from headrace import hookimpl
from headrace.errors import Unavailable
from headrace.exchange import Attempt, Exchange, Outcome
from headrace_breaker.judge import Verdict


async def fail(stage: Any) -> None:
    """Let `a` fail until its circuit opens, then forget what it was asked."""
    stage.a.status = 500
    while stage.state("a") == "closed":
        await stage.ask()
    stage.a.status = 200
    stage.asked()


async def cancelled(tasks: list[asyncio.Task[Any]], stage: Any) -> None:
    for task in tasks:
        task.cancel()
    await stage.until(lambda: stage.status.targets["a"].probes == 0)


async def test_while_it_is_half_open_one_request_tries_it_and_the_others_go_elsewhere(staged: Any) -> None:
    async with staged(failures=1) as stage:
        await fail(stage)
        stage.a.silent = True
        stage.turn_to("a", "half_open")
        tasks = [stage.asks() for _ in range(30)]
        await stage.until(lambda: sum(each.done() for each in tasks) == 29)
        assert stage.asked() == {"a": 1, "b": 29} and stage.status.targets["a"].probes == 1
        await cancelled(tasks, stage)
        assert stage.state("a") == "half_open"  # a client that left has found out nothing


class Slow:
    """Prepares every try for a while, so that many requests are arranged before the first of them is sent."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("probes", [1, 3])
async def test_no_more_than_the_probes_reach_it_though_others_prepare_slowly(staged: Any, probes: int) -> None:
    order = {"prepare_attempt": ["slow", "breaker"]}
    async with staged(failures=1, probes=probes, plugins={"slow": Slow}, order=order) as stage:
        await fail(stage)
        stage.a.silent = True
        stage.turn_to("a", "half_open")
        tasks = [stage.asks() for _ in range(20)]
        await stage.until(lambda: sum(each.done() for each in tasks) == 20 - probes)
        assert stage.asked() == {"a": probes, "b": 20 - probes}
        await cancelled(tasks, stage)


async def test_a_circuit_that_opens_while_others_prepare_lets_none_of_them_through(staged: Any) -> None:
    order = {"prepare_attempt": ["slow", "breaker"]}
    async with staged(plugins={"slow": Slow}, order=order) as stage:
        arranged = [stage.asks() for _ in range(10)]
        targets = stage.running.gateway.models.targets
        await stage.until(lambda: targets[0].state.in_flight == 10)
        stage.plugin._circuits.of("a").end(object(), Verdict.REFUSES_KEY, stage.clock.now)
        assert {(await each).status_code for each in arranged} == {200}
        assert stage.asked() == {"a": 0, "b": 10}


class Refuses:
    """Refuses tries at `a` once told to, after the breaker has let them pass."""

    refusing = False

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        if self.refusing and attempt.target.name == "a":
            raise Unavailable("Not now.", code="full")


async def test_a_probe_that_another_plugin_refuses_gives_its_place_back(staged: Any) -> None:
    async with staged(failures=1, plugins={"refuses": Refuses}) as stage:
        await fail(stage)
        stage.turn_to("a", "half_open")
        refuses: Any = stage.running.gateway.plugins["refuses"]
        refuses.refusing = True
        assert await stage.ask_often(3) == [200] * 3
        assert stage.asked()["a"] == 0 and stage.status.targets["a"].probes == 0
        refuses.refusing = False
        await stage.ask()
        assert stage.asked() == {"a": 1, "b": 0} and stage.state("a") == "slow"


async def test_a_request_that_another_backend_answers_holds_no_place(staged: Any) -> None:
    other = {"other": {"targets": ["b", "a"], "retry": {"rounds": 1}}}
    async with staged(failures=1, models=other) as stage:
        await fail(stage)
        stage.turn_to("a", "half_open")
        assert [(await stage.ask(model="other")).status_code for _ in range(3)] == [200] * 3
        assert stage.asked() == {"a": 0, "b": 3} and stage.status.targets["a"].probes == 0
        await stage.ask()
        assert stage.asked() == {"a": 1, "b": 0}


async def test_a_stream_closes_the_circuit_with_its_first_byte(staged: Any) -> None:
    async with staged(failures=1) as stage:
        await fail(stage)
        stage.turn_to("a", "half_open")
        stage.a.stall_after = 1
        stream = stage.asks(stream=True)
        await stage.until(lambda: stage.state("a") == "slow")
        assert not stream.done()
        await cancelled([stream], stage)


class Noted:
    """Notes why each answer was delivered as it was."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.reasons: list[str] = []

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.reasons.append(outcome.delivery_reason)


@pytest.mark.parametrize(("status", "stream", "by_core"), [(200, True, True), (200, False, False), (500, True, False)])
async def test_a_stream_that_is_a_probe_goes_through_the_core(
    staged: Any, status: int, stream: bool, by_core: bool
) -> None:
    async with staged(failures=1, plugins={"noted": Noted}) as stage:
        await fail(stage)
        stage.turn_to("a", "half_open")
        stage.a.status = status
        await stage.ask(stream=stream)
        assert stage.asked()["a"] == 1
        reasons = stage.running.gateway.plugins["noted"].reasons
        assert ("probe" in reasons[-1]) is by_core  # of one that failed it is another's answer


async def test_a_probe_that_fails_opens_it_again_and_its_request_is_answered_elsewhere(staged: Any) -> None:
    async with staged(failures=3) as stage:
        await fail(stage)
        stage.a.status = 500
        for openings in (2, 3, 4):
            stage.turn_to("a", "half_open")
            assert await stage.ask_often(4) == [200] * 4
            assert stage.asked() == {"a": 1, "b": 4}
            assert stage.status.targets["a"].openings == openings


async def test_it_gets_more_and_more_until_it_has_its_whole_share(staged: Any) -> None:
    async with staged(failures=1, slow_start=10) as stage:
        await fail(stage)
        stage.turn_to("a", "half_open")
        await stage.ask()
        shares = []
        for _ in range(4):
            stage.asked()
            await asyncio.gather(*(stage.ask() for _ in range(60)))
            shares.append(stage.asked()["a"] / 60)
            stage.clock.forward(3.1)
        assert shares[0] < 0.3 and shares == sorted(shares) and shares[-1] == 1.0
        assert stage.state("a") == "closed" and not stage.plugin._troubled


async def test_nobody_rushes_to_it_when_it_comes_back(staged: Any) -> None:
    async with staged(failures=1) as stage:
        await fail(stage)
        stage.a.hold, stage.a.most = asyncio.Event(), 0
        stage.turn_to("a", "half_open")
        first = [stage.asks() for _ in range(50)]
        await stage.until(lambda: sum(each.done() for each in first) == 49)
        assert stage.a.most == 1
        stage.a.hold.set()
        await asyncio.gather(*first)
        stage.a.hold = stage.b.hold = asyncio.Event()
        more = [stage.asks() for _ in range(100)]
        await stage.until(lambda: stage.a.held + stage.b.held == 100)
        assert stage.a.held < 30  # a tenth, and chance
        stage.a.hold.set()
        assert {(await each).status_code for each in more} == {200}


async def test_a_backend_that_comes_and_goes_costs_nobody_an_answer(staged: Any) -> None:
    async with staged(failures=3, open_for=5, max_open_for=15) as stage:
        statuses, tries = [], []
        for _ in range(4):
            stage.a.status = 500
            stage.asked()
            for _ in range(60):  # a minute in which it fails
                statuses += await stage.ask_often(1)
                stage.clock.forward(1.0)
            tries.append(stage.asked()["a"])
            stage.a.status, seconds = 200, 0.0
            while stage.state("a") != "closed":  # then it works
                statuses += await stage.ask_often(1)
                stage.clock.forward(0.5)
                seconds += 0.5
            assert seconds <= 15 + 10 + 0.5
        assert set(statuses) == {200}
        assert all(3 <= each <= 12 for each in tries)


async def test_with_real_time_it_is_back_as_soon_as_configured(staged: Any) -> None:
    async with staged(failures=1, open_for=0.2, max_open_for=0.2, slow_start=0, real_time=True) as stage:
        await fail(stage)
        async with asyncio.timeout(20):
            while stage.state("a") != "closed":
                assert (await stage.ask()).status_code == 200
        stage.asked()
        await stage.ask_often(3)
        assert stage.asked() == {"a": 3, "b": 0}


async def test_429_slows_it_down_and_never_opens_its_circuit(staged: Any) -> None:
    async with staged(failures=1, minimum_requests=1, slow_start=10) as stage:
        stage.a.status, stage.a.response_headers = 429, {"Retry-After": "7"}
        assert await stage.ask_often(10) == [200] * 10
        assert stage.asked() == {"a": 1, "b": 10} and stage.state("a") == "slow"
        stage.a.status = 200
        stage.clock.forward(6.9)
        await stage.ask_often(5)
        assert stage.asked() == {"a": 0, "b": 5}
        stage.clock.forward(0.2)
        assert 0.5 <= stage.status.targets["a"].share < 0.6
        stage.clock.forward(5)
        await stage.ask_often(5)
        assert stage.asked() == {"a": 5, "b": 0} and stage.state("a") == "closed"


async def test_during_a_pause_it_is_asked_if_nobody_else_answers(staged: Any) -> None:
    async with staged(failures=1) as stage:
        stage.a.status = 429
        await stage.ask()
        stage.a.status, stage.b.status = 200, 500
        assert await stage.ask_often(3) == [200] * 3
        assert stage.state("b") == "open"


async def test_if_all_say_429_whose_pause_ends_first_is_asked_first(staged: Any) -> None:
    async with staged() as stage:
        stage.a.status = stage.b.status = 429
        stage.a.response_headers, stage.b.response_headers = {"Retry-After": "20"}, {"Retry-After": "10"}
        await stage.ask()
        stage.asked()
        stage.a.status = stage.b.status = 200
        await stage.ask_often(3)
        assert stage.asked() == {"a": 0, "b": 3}


async def test_each_change_is_said_once(staged: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="headrace.breaker")
    async with staged(failures=2) as stage:
        await fail(stage)
        stage.a.status = 500
        for _ in range(3):
            stage.turn_to("a", "half_open")
            await stage.ask_often(3)
        stage.a.status = 200
        stage.turn_to("a", "half_open")
        await stage.ask_often(5)
        stage.a.status = 429
        stage.turn_to("a", "closed")
        await stage.ask_often(5)
    said = [(each.levelname, each.message) for each in caplog.records if each.name == "headrace.breaker"]
    assert [level for level, _ in said] == ["WARNING", "INFO", "INFO"]
    assert "target a: circuit open" in said[0][1] and "it failed twice in a row" in said[0][1]
    assert "closed after" in said[1][1] and "429" in said[2][1]
