"""What the queue itself costs. The bounds are for a slow machine that has other things to do; each measurement prints
what it found (`pytest -s`)."""

from __future__ import annotations

import asyncio
import gc
import math
import time
import tracemalloc
from typing import Any

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Exchange, Principal
from headrace_queue.gate import Gate, Group, Waiter
from headrace_queue.schedule import Request, Schedule
from headrace_queue.slots import Backend, Lane

pytestmark = pytest.mark.alone

MANY = 10_000


async def test_ten_thousand_that_wait_take_little_memory() -> None:
    lane = Lane([Backend("gpu", 0)], math.inf, ["m"])
    group = Group([lane], 0.05)
    gate = Gate([group], MANY, None, 60.0)

    async def enter(number: int) -> None:
        await gate.wait(Waiter(group, lane, f"caller {number % 50}", 500), 60.0)

    idle = [asyncio.create_task(asyncio.Event().wait()) for _ in range(MANY)]
    await asyncio.sleep(0)
    gc.collect()
    tracemalloc.start()
    tasks = [asyncio.create_task(enter(number)) for number in range(MANY)]
    await asyncio.sleep(0)
    each = tracemalloc.get_traced_memory()[0] / MANY
    tracemalloc.stop()
    assert gate.waiting == MANY
    for task in (*tasks, *idle):
        task.cancel()
    await asyncio.gather(*tasks, *idle, return_exceptions=True)
    print(f"{each:.0f} bytes for each that waits, its task included")
    assert each < 4000 and gate.waiting == 0


@pytest.mark.parametrize("callers", [1, 50, MANY])
def test_a_turn_among_ten_thousand_is_quick(callers: int) -> None:
    lane = Lane([Backend("gpu", 8)], math.inf, ["m"])
    schedule = Schedule([lane], 0.05)
    running: list[Request] = []
    for number in range(MANY):
        request = Request(lane, f"caller {number % callers}", 500)
        if schedule.start(request):
            running.append(request)
        else:
            schedule.wait(request)
    began = time.process_time()
    for number in range(MANY // 2):
        schedule.finish(running[number], 100)
        while (request_or_none := schedule.next()) is not None:
            running.append(request_or_none)
    seconds = (time.process_time() - began) / (MANY // 2)
    print(f"{seconds * 1e6:.1f} µs for a turn among {callers} callers")
    assert len(running) == MANY // 2 + 8 and seconds < 0.0003


async def test_where_there_is_room_a_request_is_let_in_within_microseconds(queued: Any) -> None:
    body = b'{"model":"test","messages":[{"role":"user","content":"hi"}],"max_tokens":10}'
    path = "/v1/chat/completions"
    async with queued(max_concurrency=100, key_weights={"ada": 2.0}, classes={"ops": {"teams": ["ops"]}}) as gate:
        plugin, endpoint, model = gate.plugin, OPENAI_ENDPOINTS[path], gate.running.gateway.models.find("test")
        ada, headers = Principal(id="ada", team="research"), [(b"host", b"x")] * 8
        requests = []
        for number in range(2000):
            scope = {"headers": headers, "method": "POST", "path": path}
            exchange = Exchange(id=str(number), endpoint=endpoint, scope=scope, body=body)
            exchange.peek, exchange.model, exchange.principal = endpoint.read(body), model, ada
            requests.append(exchange)
        into, whole = math.inf, math.inf
        for start in range(0, 2000, 100):
            some = requests[start : start + 100]
            began = time.perf_counter()
            held = [plugin.admit(each) for each in some]
            for each in held:
                await each.__aenter__()
            entered = time.perf_counter()
            for each in held:
                await each.__aexit__(None, None, None)
            into, whole = min(into, entered - began), min(whole, time.perf_counter() - began)
    print(f"{into * 1e4:.1f} µs to be let in, {whole * 1e4:.1f} µs with what comes at the end")
    assert whole / 100 < 0.0002
