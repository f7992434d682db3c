"""Who is asked last."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.testing import FakeBackend


@pytest.fixture
def three(watching: Any) -> Any:
    """A context: a gateway with the backends a, b and c, and they themselves by name."""

    @contextlib.asynccontextmanager
    async def run(**health: Any) -> AsyncIterator[tuple[Any, dict[str, FakeBackend]]]:
        async with FakeBackend() as a, FakeBackend() as b, FakeBackend() as c:
            found = {"a": a, "b": b, "c": c}
            async with watching({name: each.url for name, each in found.items()}, **health) as running:
                for watch in running.plugin.watches.values():
                    watch.target.state.serves = None
                yield running, found

    return run


async def order(running: Any, backends: dict[str, FakeBackend]) -> list[str]:
    """Which backends a request asks if all of them are refusing it, in order."""
    asked: list[str] = []
    for name, backend in backends.items():
        backend.status = 429
        backend.requests = _Noted(asked, name)
    await running.ask()
    return list(dict.fromkeys(asked))


class _Noted(list[Any]):
    def __init__(self, into: list[str], name: str) -> None:
        self._into, self._name = into, name

    def append(self, request: Any) -> None:
        if request[0].endswith("/chat/completions"):
            self._into.append(self._name)


async def test_the_order_stays_while_all_are_well(three: Any) -> None:
    async with three() as (running, backends):
        assert await order(running, backends) == ["a", "b", "c"]


@pytest.mark.parametrize("condition", ["down", "starting"])
async def test_what_is_not_well_is_asked_last(three: Any, condition: str) -> None:
    async with three() as (running, backends):
        running.state("a").become(condition)
        assert await order(running, backends) == ["b", "c", "a"]


async def test_the_others_keep_their_order_and_so_do_the_last(three: Any) -> None:
    async with three() as (running, backends):
        running.state("a").become("down")
        running.state("b").become("starting")
        assert await order(running, backends) == ["c", "a", "b"]


async def test_all_are_asked_even_if_none_is_well(three: Any) -> None:
    async with three() as (running, backends):
        for name in backends:
            running.state(name).become("down")
        assert await order(running, backends) == ["a", "b", "c"]


async def test_nobody_knows_yet_is_as_good_as_well(three: Any) -> None:
    async with three() as (running, backends):
        running.state("a").become("unknown")
        assert await order(running, backends) == ["a", "b", "c"]


async def test_what_does_not_list_the_model_is_asked_last(three: Any) -> None:
    async with three() as (running, backends):
        running.state("a").serves = frozenset(("another",))
        running.state("b").serves = frozenset(("test", "a-lora"))
        assert await order(running, backends) == ["b", "c", "a"]


async def test_unless_it_answers_to_any_name(three: Any) -> None:
    async with three(targets={"a": {"any_model": True}}) as (running, backends):
        running.state("a").serves = frozenset(("another",))
        running.state("b").serves = frozenset(("test",))
        assert await order(running, backends) == ["a", "b", "c"]


async def test_a_name_that_no_backend_lists_may_be_the_gateway_s_own(three: Any) -> None:
    async with three() as (running, backends):
        running.state("a").serves = frozenset(("another",))
        assert await order(running, backends) == ["a", "b", "c"]


async def test_the_name_that_counts_is_the_one_the_backend_is_sent(watching: Any) -> None:
    async with FakeBackend() as backend:
        tables = {
            "wrong": {"base_url": backend.url, "model": "missing"},
            "right": {"base_url": backend.url, "model": "fake-model"},
        }
        async with watching(tables) as running:
            asked = await running.ask()
            assert asked.status_code == 200
            assert b'"fake-model"' in backend.requests[-1][2]
