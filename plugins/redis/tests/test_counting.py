"""Counted in a server as in the file of one gateway: all of a request's limits or none, and settled by what it took."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.config import Secret
from headrace.errors import Unavailable
from headrace.ledger import LARGEST, Level, Limit, Refusal
from headrace.ledger.local import LocalLedger
from headrace_redis.config import RedisConfig
from headrace_redis.ledger import RedisHold, RedisLedger

DAY = Limit("t:day", "window", 100, 86_400.0)
MONTH = Limit("t:month", "sum", 150, ends=1e10)
OPEN = Limit("t:open", "open", 4)
ALL = (DAY, MONTH, OPEN)
Make = Callable[..., Any]


async def used(ledger: RedisLedger, *limits: Limit) -> list[int]:
    return [level.used for level in await ledger.levels(limits)]


async def taken(ledger: RedisLedger, limits: tuple[Limit, ...], *amounts: int) -> RedisHold:
    hold = await ledger.reserve(limits, amounts)
    assert isinstance(hold, RedisHold)
    return hold


async def test_a_request_takes_all_it_needs_and_gives_back_what_it_did_not_use(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, ALL, 60, 60, 1)
        assert await used(ledger, *ALL) == [60, 60, 1]
        hold.settle((20, 25, 1))
        assert await used(ledger, *ALL) == [20, 25, 0]


async def test_a_request_that_does_not_fit_everywhere_takes_nothing(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        await taken(ledger, ALL, 10, 140, 1)
        refusal = await ledger.reserve(ALL, (10, 20, 1))
        assert isinstance(refusal, Refusal)
        assert (refusal.level.limit, refusal.amount) == (MONTH, 20)
        assert [level.used for level in refusal.levels] == [10, 140, 1]
        assert await used(ledger, *ALL) == [10, 140, 1]


async def test_a_hold_says_how_its_limits_stand(server: Any, ledger_at: Make) -> None:
    ends = time.time() + 1000
    limits = (Limit("t:m", "window", 100, 60.0), Limit("t:s", "sum", 9, ends=ends), OPEN, Limit("t:0", "window", 1, 60))
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, limits, 40, 5, 1, 0)
    assert hold.levels == [
        Level(limits[0], 40, pytest.approx(60.5, abs=0.6)),  # type: ignore[arg-type]
        Level(limits[1], 5, pytest.approx(1000, abs=5)),  # type: ignore[arg-type]
        Level(OPEN, 1, math.inf),
        Level(limits[3], 0, 0.0),
    ]


async def test_a_refusal_says_when_it_would_fit(server: Any, ledger_at: Make) -> None:
    window, total = Limit("t:m", "window", 100, 60.0), Limit("t:s", "sum", 9, ends=time.time() + 1000)
    async with ledger_at(f"unix://{server.path}") as ledger:
        await taken(ledger, (window, total, OPEN), 100, 9, 4)
        waits = {}
        for limit in (window, total, OPEN):
            refusal = await ledger.reserve((limit,), (1,))
            assert isinstance(refusal, Refusal)
            waits[limit.kind] = refusal.wait
        never = await ledger.reserve((window,), (10**30,))
        assert isinstance(never, Refusal)
    assert waits["window"] == pytest.approx(60.5, abs=0.6)
    assert waits["sum"] == pytest.approx(1000, abs=5)
    assert 0 < waits["open"] < 10
    assert (never.wait, never.amount) == (math.inf, 10**30)


async def test_a_second_settlement_changes_nothing(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, ALL, 50, 50, 1)
        hold.settle((10, 10, 1))
        hold.settle((0, 0, 1))
        assert await used(ledger, *ALL) == [10, 10, 0]


async def test_what_was_used_beyond_the_reservation_counts_as_well(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        (await taken(ledger, ALL, 50, 50, 1)).settle((130, 170, 1))
        assert await used(ledger, *ALL) == [130, 170, 0]
        assert isinstance(await ledger.reserve((DAY,), (0,)), Refusal)


async def test_what_was_settled_is_told_soon_though_nobody_asks(server: Any, ledger_at: Make, until: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        (await taken(ledger, ALL, 50, 50, 1)).settle((10, 20, 1))
        await until(lambda: server.only_value("*t:month")[b"used"] == b"20")


async def test_what_is_asked_for_at_the_same_time_is_decided_one_after_another(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        found = await asyncio.gather(*[ledger.reserve(ALL, (10, 10, 0)) for _ in range(30)])
        assert sum(isinstance(each, RedisHold) for each in found) == 10
        assert await used(ledger, *ALL) == [100, 100, 0]


async def test_much_that_waits_is_asked_in_few_calls(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        before = calls(server)
        holds = await asyncio.gather(*[ledger.reserve((MONTH,), (1,)) for _ in range(100)])
        for hold in holds:
            hold.settle((0,))
        assert await used(ledger, MONTH) == [0]
    assert calls(server) - before <= 5


def calls(server: Any) -> int:
    lines = server.call("INFO", "commandstats").decode().split()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines if "cmdstat_eval" in line)


async def test_the_largest_numbers_are_counted_exactly(server: Any, ledger_at: Make) -> None:
    limits = (Limit("t:big", "sum", LARGEST), Limit("t:big", "window", LARGEST, 3600.0))
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, limits, LARGEST - 1, LARGEST - 1)
        await taken(ledger, limits, 1, 1)
        assert isinstance(await ledger.reserve(limits[:1], (1,)), Refusal)
        assert isinstance(await ledger.reserve(limits[1:], (1,)), Refusal)
        hold.settle((LARGEST - 3, LARGEST - 3))
        assert await used(ledger, *limits) == [LARGEST - 2, LARGEST - 2]


async def test_limits_with_long_or_broken_names_are_told_apart(server: Any, ledger_at: Make) -> None:
    names = ["x" * 1000 + "a", "x" * 1000 + "b", "\udc80", "\udc81", "ä", "\0"]
    limits = [Limit(f"t:{name}", "sum", 100) for name in names]
    async with ledger_at(f"unix://{server.path}") as ledger:
        for amount, limit in enumerate(limits):
            await taken(ledger, (limit,), amount)
        assert await used(ledger, *limits) == [0, 1, 2, 3, 4, 5]
    assert max(len(key) for key in server.call("KEYS", "*")) < 600


async def test_what_two_gateways_take_counts_for_both(server: Any, ledger_at: Make) -> None:
    url = f"unix://{server.path}"
    async with ledger_at(url) as one, ledger_at(url, number=1) as other:
        hold = await taken(one, ALL, 60, 60, 3)
        assert isinstance(await other.reserve(ALL, (60, 60, 1)), Refusal)
        assert isinstance(await other.reserve((OPEN,), (2,)), Refusal)
        await taken(other, ALL, 40, 40, 1)
        hold.settle((0, 0, 3))
        assert await used(one, *ALL) == [40, 40, 1]
        assert await used(other, *ALL) == [40, 40, 1]


async def test_gateways_with_different_prefixes_share_nothing(server: Any, ledger_at: Make) -> None:
    url = f"unix://{server.path}"
    async with ledger_at(url) as one, ledger_at(url, number=1, prefix="{b}:") as other:
        await taken(one, ALL, 60, 60, 3)
        assert await used(other, *ALL) == [0, 0, 0]


async def test_every_key_is_forgotten_by_itself(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        await taken(ledger, (DAY, Limit("t:s", "sum", 9, ends=time.time() + 50), OPEN), 1, 1, 1)
        times = {key.decode(): server.call("PTTL", key) / 1000 for key in server.call("KEYS", "*")}
        assert times.pop("{headrace}:1:w:t:day") == pytest.approx(86_400 * 62 / 60 + 1, abs=5)
        assert times.pop("{headrace}:1:s:t:s") == pytest.approx(50, abs=5)
        assert times.pop("{headrace}:1:o:t:open") == pytest.approx(120, abs=5)
        assert times.pop("{headrace}:1:leases") == pytest.approx(120, abs=5)
        assert [round(left / 100) for left in times.values()] == [864]  # what this process has said last


async def test_a_sum_begins_anew_when_it_has_ended(server: Any, ledger_at: Make, until: Make) -> None:
    limit = Limit("t:s", "sum", 10, ends=time.time() + 0.3)
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, (limit,), 10)
        await until(lambda: not server.call("KEYS", "*t:s"))
        again = Limit("t:s", "sum", 10, ends=time.time() + 1000)
        await taken(ledger, (again,), 6)
        hold.settle((1,))  # of the one before
        assert await used(ledger, again) == [6]


async def test_what_dead_gateways_held_open_is_free_when_their_lease_is_over(server: Any, ledger_at: Make) -> None:
    url = f"unix://{server.path}"
    async with ledger_at(url) as living:
        await taken(living, (OPEN,), 1)
        server.call("HSET", "{headrace}:1:o:t:open", "dead", 2, "slow", 1)
        now = int(server.call("TIME")[0])
        server.call("ZADD", "{headrace}:1:leases", now - 1, "dead", now + 30, "slow")
        assert await used(living, OPEN) == [2]
        await taken(living, (OPEN,), 2)
        assert b"dead" not in server.only_value("*t:open")


async def test_what_is_open_keeps_its_place(server: Any, ledger_at: Make, until: Make) -> None:
    """The lease is renewed in the background; what has been lost by then is put back."""
    async with ledger_at(f"unix://{server.path}") as ledger:
        await taken(ledger, (OPEN,), 3)
        server.call("FLUSHALL")
        ledger._batches.renew()
        await until(lambda: server.call("KEYS", "*t:open"))
        assert await used(ledger, OPEN) == [3]
        assert server.call("ZCARD", "{headrace}:1:leases") == 1


async def test_a_gateway_that_stops_holds_nothing_open(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        hold = await taken(ledger, ALL, 50, 50, 1)
        hold.settle((20, 20, 1))
        await taken(ledger, (OPEN,), 2)
    assert server.call("KEYS", "*t:open") == []
    assert server.only_value("*t:month")[b"used"] == b"20"


async def test_a_command_can_read_levels(server: Any, ledger_at: Make, tmp_path: Path) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        await taken(ledger, ALL, 50, 50, 1)
        config = RedisConfig(url=Secret(f"unix://{server.path}"), deadline=1.0)
        reader = RedisLedger(config, lambda: LocalLedger(tmp_path / "reader"))
        async with reader.reading():
            assert await used(reader, *ALL) == [50, 50, 1]


async def test_a_command_can_list_what_has_been_used_of_sums(server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        for number in range(1200):
            await taken(ledger, (Limit(f"b[*]:{number:04}", "sum", 9999),), number)
        await taken(ledger, (Limit("bx*:1", "sum", 9), Limit("b[*]:w", "window", 9, 60.0)), 1, 1)
        assert await ledger.scan("sum", "b[*]:") == [(f"b[*]:{number:04}", number) for number in range(1200)]
        assert await ledger.scan("sum", "none") == []


async def test_what_cannot_be_listed_is_said(own_server: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{own_server.path}") as ledger:
        own_server.kill()
        with pytest.raises(Unavailable, match="cannot be listed"):
            await ledger.scan("sum", "b")
