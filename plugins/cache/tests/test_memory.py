"""The memory level by itself: a backend as aiocache has them, with a bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_cache.entry import NO_EPOCH, OVERHEAD, Entry
from headrace_cache.memory import Memory


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def entry(size: int = 10, ends: float = 2000.0, model: str = "m", key: str = "k") -> Entry:
    return Entry(key, model, "whole", b"x" * size, 0.0, ends)


def memory(most: int = 10_000, clock: Clock | None = None) -> Memory:
    return Memory(most, lambda model: NO_EPOCH, clock or Clock())


async def test_it_is_used_as_aiocache_uses_any() -> None:
    cache, one = memory(), entry()
    assert await cache.set("a", one) and await cache.exists("a")
    assert await cache.get("a") is one and await cache.get("b") is None
    assert await cache.multi_get(["a", "b"]) == [one, None]
    assert await cache.delete("a") == 1 and await cache.delete("a") == 0
    await cache.set("c", one)
    await cache.clear()
    assert await cache.get("c") is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "find", "drop", "wait"]),
        st.integers(0, 8),
        st.integers(0, 4000),
        st.integers(-5, 60),
    ),
    max_size=60,
)


@given(steps)
@settings(deadline=None, max_examples=60)
def test_it_never_holds_more_than_it_may_and_counts_truly(told: list[tuple[str, int, int, int]]) -> None:
    clock = Clock()
    cache = memory(12_000, clock)
    known: dict[str, Entry] = {}
    for what, number, size, seconds in told:
        key, model = f"k{number}", f"m{number % 2}"
        if what == "put":
            known[key] = entry(size, clock.now + seconds, model)
            cache.put(key, known[key])
        elif what == "find":
            found = cache.find(key)
            assert found is None or (found is known[key] and found.ends > clock.now)
        elif what == "drop":
            cache.drop(model)
            assert all(cache.find(other) is None for other, each in known.items() if each.model == model)
        else:
            clock.now += seconds if seconds > 0 else 1
        held = cache.held
        there = [each for other, each in known.items() if cache._shelf.peek(other) is each]
        assert sum(each.bytes for each in held.values()) == sum(each.size for each in there) <= 12_000
        assert sum(each.entries for each in held.values()) == len(there)


@pytest.mark.parametrize("size", [9_000, 20_000])
def test_what_is_larger_than_all_of_it_is_not_kept(size: int) -> None:
    cache = memory(9_000)
    cache.put("small", entry(100))
    cache.put("large", entry(size))
    assert cache.find("large") is None and cache.find("small") is not None


def test_an_entry_of_an_earlier_epoch_is_gone() -> None:
    epochs = {"m": ("", "")}
    cache = Memory(10_000, epochs.__getitem__)
    one = Entry("k", "m", "whole", b"", 0.0, 1e12)
    cache.put("k", one)
    assert cache.find("k") is one
    epochs["m"] = ("", "next")
    assert cache.find("k") is None and cache.held["m"].entries == 0


def test_an_entry_takes_more_than_its_bytes() -> None:
    assert entry(10).size == 10 + OVERHEAD
