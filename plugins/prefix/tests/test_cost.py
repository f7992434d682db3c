"""What a decision costs. The bounds are for a slow machine that has other things to do; each measurement prints what it
found (`pytest -s`)."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.alone


def cost(call: Callable[[], Any], times: int) -> float:
    """Seconds of CPU, in the best of some rounds."""
    least = math.inf
    for _ in range(12):
        began = time.process_time()
        for _ in range(times):
            call()
        least = min(least, time.process_time() - began)
    return least / times


@pytest.mark.parametrize(("size", "bound"), [(600, 60e-6), (3500, 80e-6), (4_000_000, 2e-3)])
def test_a_decision_among_eight_targets_takes_microseconds(
    routing: Callable[..., Any], chat: Any, targets: Any, size: int, bound: float
) -> None:
    route, some = routing(), targets(8)
    for target in some:  # all of them know the prompt: the dearest case
        exchange = chat("Hi", system="You are a helpful assistant. ", size=size)
        route.order(exchange, some)
        route.begin(exchange, target).end()
    again = chat("Hi", system="You are a helpful assistant. ", size=size)
    assert again.fields  # the core reads them in any case
    seconds = cost(lambda: route.order(again, some), 100)
    print(f"{seconds * 1e6:.1f} µs for {len(again.body)} bytes")
    assert seconds < bound


def test_what_is_remembered_does_not_grow(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(max_blocks=200), targets(4)
    for number in range(400):
        route.ask(chat(f"{number} " * 300), some, 0)
    gc.collect()
    tracemalloc.start()
    for number in range(400, 1200):
        route.ask(chat(f"{number} " * 300), some, 0)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"{grown} bytes more after 800 requests")
    assert sum(len(known.blocks) for known in route.backends.all) == 800 and grown < 250_000
