"""Who gets whose answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("partition", "who", "found"),
    [
        ("team", "ann/red", "hit"),
        ("team", "bob/red", "hit"),
        ("team", "eve/blue", "miss"),
        ("team", "red", "miss"),
        ("team", "ann", "miss"),
        ("key", "bob/red", "miss"),
        ("key", "ann/blue", "hit"),
        ("shared", "eve/blue", "hit"),
        ("shared", "", "hit"),
    ],
)
async def test_answers_are_given_to_the_same_tenant_alone(
    cached: Any, chat: Any, partition: str, who: str, found: str
) -> None:
    async with cached(partition=partition) as gateway:
        await gateway.ask(chat, x_who="ann/red")
        assert (await gateway.ask(chat, x_who=who)).headers["x-cache"] == found


async def test_nobody_joins_the_answer_of_another_tenant(cached: Any, chat: Any, backend: Any, until: Any) -> None:
    backend.gate.clear()
    async with cached() as gateway:
        asks = [asyncio.create_task(gateway.ask(chat, x_who=f"{number}/t{number % 3}")) for number in range(9)]
        await until(lambda: gateway.asked == 3)
        backend.gate.set()
        answers = await asyncio.gather(*asks)
        assert gateway.asked == 3 and [each.headers["x-cache"] for each in answers].count("miss") == 3
