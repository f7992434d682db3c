"""What requests count as that did not end well: as what is known of them, or as what was reserved."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Exchange, Principal, Usage

ENDPOINT = OPENAI_ENDPOINTS["/v1/chat/completions"]
BODY = b'{"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 500}'
PROMPT = 24
"""Tokens that are reserved for that one's prompt: four bytes each, and a tenth more."""


async def test_a_whole_answer_that_nobody_waited_for_counts_as_reserved(budgeted: Any) -> None:
    """Nobody can say how far the backend came: to leave just before the end must not be a way around a budget."""
    async with budgeted({"tokens_per_month": 1000}) as gate:
        gate.backend.silent = True
        asked = asyncio.create_task(gate.ask(max_tokens=500))
        while not gate.backend.requests:
            await asyncio.sleep(0.005)
        asked.cancel()
        await gate.backend.closed_early.wait()
        gate.backend.silent = False
        assert (await gate.ask(max_tokens=600)).status_code == 429
        assert 500 < await gate.used_in_all() < 550


async def test_a_stream_that_its_client_leaves_costs_what_has_passed(budgeted: Any) -> None:
    async with budgeted({"tokens_per_month": 1000}) as gate:
        gate.backend.chunks, gate.backend.pause = 400, 0.02
        body = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 500, "stream": True}
        async with gate.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        await gate.backend.closed_early.wait()
        async with asyncio.timeout(10):
            while (used := await gate.used_in_all()) > 500:
                await asyncio.sleep(0.01)
    assert PROMPT < used < PROMPT + 300


async def test_a_stream_that_is_cut_costs_what_has_passed(budgeted: Any) -> None:
    async with budgeted({"tokens_per_month": 1000}) as gate:
        gate.backend.chunks, gate.backend.cut_after, gate.backend.pause = 10, 4, 0.02
        await gate.ask(max_tokens=500, stream=True)
        used = await gate.used_in_all()
    assert PROMPT < used <= PROMPT + 10


@pytest.mark.parametrize("status", [400, 500])
async def test_what_a_backend_refuses_costs_nothing(budgeted: Any, status: int) -> None:
    async with budgeted({"cost_per_month": 10}) as gate:
        gate.backend.status = status
        answers = [await gate.ask(max_tokens=900) for _ in range(3)]
        assert await gate.used_in_all() == 0
    assert all(each.status_code >= 400 for each in answers)
    assert not any(each.status_code == 429 for each in answers)


@pytest.fixture
def settled(budgeted: Any) -> Any:
    """What is used by a request that is admitted, and then ends as the exchange says."""

    async def settled(attempts: int = 1, failed: bool = False, status: int = 200, usage: Usage | None = None) -> int:
        async with budgeted({"tokens_per_month": 1000}) as gate:
            gateway = gate.running.gateway
            scope = {"headers": [], "method": "POST", "path": ENDPOINT.path, "client": ("127.0.0.1", 1)}
            exchange = Exchange(id="x", endpoint=ENDPOINT, scope=scope, body=BODY)
            exchange.peek, exchange.principal = ENDPOINT.read(BODY), Principal(id="ada")
            exchange.model = gateway.models.find("test")
            async with gateway.hooks.admit(exchange):
                tried: Any = SimpleNamespace(target=exchange.model.targets[0], reporting=object() if failed else None)
                exchange.attempts += [tried] * attempts
                exchange.status, exchange.usage = status, usage
            used: int = await gate.used_in_all()
            return used

    return settled


COUNTED = Usage(5, 7)
REPORTED_LOST = Usage(5, 0, estimated=True)


@pytest.mark.parametrize(
    ("ended", "used"),
    [
        ({"usage": COUNTED}, 12),
        ({"usage": COUNTED, "attempts": 3}, 12),
        ({"usage": COUNTED, "attempts": 0}, 0),
        ({}, PROMPT + 500),
        ({"failed": True}, 0),
        ({"status": 400}, 0),
        ({"usage": Usage(5, 7, estimated=True)}, PROMPT + 7),
        ({"usage": Usage(50, 7, estimated=True)}, 57),
        ({"usage": REPORTED_LOST, "failed": True}, PROMPT + 500),
    ],
    ids=["counted", "third try", "cache", "unknown", "failed", "refused", "estimated", "long prompt", "report lost"],
)
async def test_a_request_counts_as_what_is_known_of_it(settled: Any, ended: dict[str, Any], used: int) -> None:
    assert await settled(**ended) == used
