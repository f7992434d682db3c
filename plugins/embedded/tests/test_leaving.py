"""A client that leaves is noticed by llama.cpp itself, and nobody waits for somebody else's answer."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.alone

CHAT = "/v1/chat/completions"
LIMIT = 0.25
"""Seconds from a client's departure until llama.cpp computes nothing for it any more."""
ENDLESS = {
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 4000,
    "ignore_eos": True,
    "temperature": 0,
}
LONG_PROMPT = " ".join(f"word{number}" for number in range(700))


def stopped_after(engine: Any, leave: Callable[[], None]) -> float:
    """Leave, and measure until llama.cpp is idle; it must then stay idle."""
    started = time.perf_counter()
    leave()
    wait(engine.is_idle)
    seconds = time.perf_counter() - started
    before = engine.counters()["n_decode_total"]
    assert engine.busy == 0
    assert engine.counters()["n_decode_total"] == before
    return seconds


@contextlib.contextmanager
def begun(engine: Any, **fields: Any) -> Iterator[socket.socket]:
    """The connection of a request that llama.cpp has begun to work on."""
    with engine.open(CHAT, **fields) as connection:
        wait(lambda: engine.counters()["requests_processing"] == 1)
        yield connection


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline


@pytest.mark.parametrize("stream", [True, False])
def test_generation_stops_when_the_client_leaves(engine: Any, stream: bool) -> None:
    with begun(engine, **ENDLESS, stream=stream) as connection:
        received = b""
        while stream and received.count(b"data: ") < 3:
            received += connection.recv(65536)
        seconds = stopped_after(engine, connection.close)
    print(f"stopped {seconds * 1000:.0f} ms after the client of a {'stream' if stream else 'whole answer'} left")
    assert seconds < LIMIT


@pytest.mark.parametrize("stream", [True, False])
def test_reading_a_long_prompt_stops_when_the_client_leaves(engine: Any, stream: bool) -> None:
    messages = [{"role": "user", "content": f"{stream} {LONG_PROMPT}"}]
    with begun(engine, messages=messages, stream=stream) as connection:
        seconds = stopped_after(engine, connection.close)
    print(f"stopped {seconds * 1000:.0f} ms after the client left while its prompt was read")
    assert seconds < LIMIT


def test_a_client_that_leaves_the_queue_never_reaches_the_model(engine: Any) -> None:
    before = engine.counters()["prompt_tokens_total"]
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(engine.open(CHAT, **ENDLESS, stream=True))
        wait(lambda: bool(engine.busy == 2))
        with engine.open(CHAT, messages=[{"role": "user", "content": "Queued: " + LONG_PROMPT}], max_tokens=1):
            assert engine.busy == 2  # asked after it, on another connection: by now it waits, and then it leaves
    wait(engine.is_idle)
    assert engine.counters()["prompt_tokens_total"] - before < 500


def test_two_streams_advance_together(engine: Any) -> None:
    arrivals: list[str] = []

    def read(name: str) -> None:
        with engine.client.stream("POST", CHAT, json={**ENDLESS, "max_tokens": 40, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                    arrivals.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    turns = sum(first != second for first, second in itertools.pairwise(arrivals))
    assert len(arrivals) > 60
    assert turns > 20, f"the streams took turns only {turns} times"


def test_a_stream_goes_on_while_a_long_prompt_is_read(engine: Any) -> None:
    with engine.client.stream("POST", CHAT, json={**ENDLESS, "max_tokens": 300, "stream": True}) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        with engine.open(CHAT, messages=[{"role": "user", "content": "Again: " + LONG_PROMPT}], max_tokens=1):
            wait(lambda: bool(engine.busy == 2))
            arrivals = [time.perf_counter() for _ in zip(range(20), lines, strict=False)]
            assert engine.busy == 2, "the long prompt was over too soon for this test"
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    print(f"longest silence of the stream: {max(gaps) * 1000:.0f} ms")
    assert max(gaps) < 2.0
