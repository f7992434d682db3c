"""Several gateways at the same time, each a process of its own: together they never get more than there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

WINDOW_MOST, WINDOW_SECONDS, LOAD_SECONDS = 300, 1.0, 5.0
SUM_MOST = 6000

WORKER = """
import asyncio, json, sys, time
from headrace.config import Secret
from headrace.ledger import Limit, Refusal
from headrace_redis.config import RedisConfig
from headrace_redis.ledger import RedisLedger

WINDOW = Limit("t:window", "window", {window}, {seconds})
BOUNDED = (Limit("t:sum", "sum", {total}), Limit("t:open", "open", 5))

async def window(ledger, until, grants):
    while (before := time.monotonic()) < until:
        if isinstance(await ledger.reserve((WINDOW,), (1,)), Refusal):
            await asyncio.sleep(0.005)
        else:
            grants.append((before, time.monotonic()))

async def total(ledger, spent):
    while True:
        hold = await ledger.reserve(BOUNDED, (10, 1))
        if not isinstance(hold, Refusal):
            await asyncio.sleep(0)
            hold.settle((7, 1))
            spent.append(7)
        elif hold.level.limit.kind == "sum":
            return
        else:
            await asyncio.sleep(0.001)

async def main(url):
    ledger = RedisLedger(RedisConfig(url=Secret(url), deadline=4.0, on_failure="closed"), lambda: ledger)
    async with ledger.running():
        print("ready", flush=True)
        sys.stdin.readline()
        grants, spent, until = [], [], time.monotonic() + {load}
        await asyncio.gather(*[window(ledger, until, grants) for _ in range(4)])
        await asyncio.gather(*[total(ledger, spent) for _ in range(4)])
    print(json.dumps([grants, sum(spent)]), flush=True)

asyncio.run(main(sys.argv[1]))
"""


def worker(url: str) -> subprocess.Popen[str]:
    code = WORKER.format(window=WINDOW_MOST, seconds=WINDOW_SECONDS, total=SUM_MOST, load=LOAD_SECONDS)
    process = subprocess.Popen(
        [sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def most_in_a_window(grants: Sequence[tuple[float, float]]) -> int:
    """Of grants that were asked for and answered within the window's length: those surely were made in it."""
    ordered = sorted(grants)
    return max(
        sum(answered <= asked + WINDOW_SECONDS for _, answered in ordered[first : first + 2 * WINDOW_MOST])
        for first, (asked, _) in enumerate(ordered)
    )


def test_four_processes_never_exceed_a_limit_and_get_nearly_all_of_it(own_server: Any) -> None:
    processes = [worker(f"unix://{own_server.path}") for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]

    grants = [(asked, answered) for each, _ in reports for asked, answered in each]
    assert most_in_a_window(grants) <= WINDOW_MOST
    assert len(grants) >= 0.95 * WINDOW_MOST * LOAD_SECONDS / WINDOW_SECONDS

    spent = sum(spent for _, spent in reports)
    assert 0.95 * SUM_MOST <= spent <= SUM_MOST
    assert own_server.only_value("*t:sum")[b"used"] == str(spent).encode()
    assert own_server.call("KEYS", "*t:open") == []
