"""What noting a request costs: nobody waits for the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Attempt, Exchange, Outcome, Principal, Target, Usage
from headrace.gateway import Gateway
from headrace.settings import parse

ALLOWED = 5e-6
"""Seconds of CPU time for one request, on a machine that others use as well."""
REQUESTS = 2000


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"usage": {"queue_rows": 1_000_000}}}
    yield Gateway(parse(document)).assemble()


def finished() -> tuple[Exchange, Outcome, Outcome]:
    endpoint = OPENAI_ENDPOINTS["/v1/chat/completions"]
    scope: Any = {"headers": [], "method": "POST", "path": endpoint.path, "client": ("127.0.0.1", 1)}
    exchange = Exchange(id="0" * 32, endpoint=endpoint, scope=scope)
    exchange.peek = endpoint.read(b'{"model":"chat","messages":[{"role":"user","content":"hi"}],"stream":true}')
    exchange.principal = Principal(id="k1", name="ada's", team="red")
    attempt = Attempt(exchange, 1, Target(name="gpu1", provider="openai", base_url="http://x"), None)
    exchange.attempts.append(attempt)
    usage = Usage(100, 20)
    whole = Outcome(status=200, completed=True, target="gpu1", usage=usage, delivery="offload", delivery_reason="x")
    return exchange, whole, whole


def test_noting_a_request_takes_less_than_five_microseconds(gateway: Gateway) -> None:
    plugin = gateway.plugins["usage"]
    exchange, tried, outcome = finished()

    async def note() -> float:
        attempt = exchange.attempts[0]
        before = time.thread_time()
        for _ in range(REQUESTS):
            await plugin.on_attempt(attempt, tried)
            await plugin.on_complete(exchange, outcome)
        return (time.thread_time() - before) / REQUESTS

    best = min(asyncio.run(note()) for _ in range(10))
    print(f"{best * 1e6:.2f} us")
    assert best < ALLOWED
