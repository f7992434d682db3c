"""The index of one backend, beside a model that is too simple to be wrong."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_prefix.blocks import Blocks


class Simple:
    """The same by lists of whole prefixes."""

    def __init__(self, capacity: int, ttl: float) -> None:
        self.capacity, self.ttl = capacity, ttl
        self.times: dict[str, float] = {}
        self.computed: set[str] = set()

    def depth(self, prompt: str, now: float) -> int:
        known = [each for each in prefixes(prompt) if now - self.times.get(each, -1e9) < self.ttl]
        return next((number for number, each in enumerate(prefixes(prompt)) if each not in known), len(prompt))

    def touch(self, prompt: str, now: float) -> list[float]:
        self.keep([each for each, at in self.times.items() if now - at < self.ttl])
        before: list[float] = []
        for number, each in enumerate(prefixes(prompt)):
            if each in self.computed and len(before) == number:
                before.append(self.times[each])
        self.times.update(dict.fromkeys(prefixes(prompt), now))
        self.shrink()
        return before

    def confirm(self, prompt: str, now: float) -> None:
        if any(each not in self.times for each in prefixes(prompt)):
            self.times.update(dict.fromkeys(prefixes(prompt), now))
        self.computed.update(prefixes(prompt))
        self.shrink()

    def drop(self, prompt: str) -> None:
        self.keep([each for each in self.times if each in self.computed or each not in prefixes(prompt)])

    def forget_until(self, time: float) -> None:
        self.keep([each for each, at in self.times.items() if at > time])

    def shrink(self) -> None:
        newest = sorted(self.times, key=lambda each: (-self.times[each], len(each)))
        self.keep(newest[: self.capacity])

    def keep(self, kept: Sequence[str]) -> None:
        self.times = {each: self.times[each] for each in kept}
        self.computed &= self.times.keys()

    @property
    def is_closed(self) -> bool:
        """Whether of every prompt the beginning is known."""
        return all(each[:-1] in self.times for each in self.times if len(each) > 1)


def prefixes(prompt: str) -> list[str]:
    return [prompt[: end + 1] for end in range(len(prompt))]


def chain(prompt: str) -> list[int]:
    return [hash(each) for each in prefixes(prompt)]


PROMPTS = st.text("ab", min_size=1, max_size=8)
STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "answer", "fail", "forget"]), PROMPTS, st.integers(1, 12)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(3, 20), st.sampled_from([20.0, 1e6]), PROMPTS)
def test_the_index_knows_what_a_list_of_prefixes_knows(
    steps: list[tuple[str, str, int]], capacity: int, ttl: float, probe: str
) -> None:
    blocks, simple, now = Blocks(capacity, ttl), Simple(capacity, ttl), 1000.0
    running: list[str] = []

    def end(answered: bool) -> None:
        prompt = running.pop(0)
        if answered:
            blocks.confirm(chain(prompt), now)
            simple.confirm(prompt, now)
        else:
            blocks.drop(chain(prompt))
            simple.drop(prompt)

    for step, prompt, passed in [*steps, *(("answer", "a", 1) for _ in steps)]:
        now += passed
        if step == "ask":
            assert blocks.touch(chain(prompt), now) == simple.touch(prompt, now)
            running.append(prompt)
        elif step == "forget":
            blocks.forget_until(now - 2 * passed)
            simple.forget_until(now - 2 * passed)
        elif running:
            end(step == "answer")
        assert len(blocks) == len(simple.times) <= capacity
        if simple.is_closed:
            assert blocks.depth(chain(probe), now) == simple.depth(probe, now)
            assert blocks.depth(chain(prompt), now) == simple.depth(prompt, now)
    assert not running and simple.is_closed


def test_of_one_prompt_the_end_is_evicted_first() -> None:
    blocks = Blocks(10, 1e6)
    blocks.touch(chain("aaaaaa"), 1.0)
    blocks.touch(chain("bbbbbbb"), 2.0)
    assert (blocks.depth(chain("aaaaaa"), 3.0), blocks.depth(chain("bbbbbbb"), 3.0)) == (3, 7)


def test_a_prompt_longer_than_all_there_is_room_for_keeps_its_beginning() -> None:
    blocks = Blocks(4, 1e6)
    blocks.touch(chain("abababab"), 1.0)
    assert blocks.depth(chain("abababab"), 2.0) == 4


def test_what_nobody_asks_for_is_forgotten_after_its_time() -> None:
    blocks = Blocks(10, 60.0)
    blocks.touch(chain("aa"), 100.0)
    assert (blocks.depth(chain("aa"), 159.0), blocks.depth(chain("aa"), 160.0)) == (2, 0)


def test_what_a_request_brought_that_failed_is_forgotten_and_nothing_else() -> None:
    blocks = Blocks(10, 1e6)
    blocks.touch(chain("aa"), 1.0)
    blocks.confirm(chain("aa"), 2.0)
    blocks.touch(chain("aabb"), 3.0)
    blocks.drop(chain("aabb"))
    assert blocks.depth(chain("aabb"), 4.0) == 2


def test_memory_is_bounded_by_the_number_of_pieces() -> None:
    rng, pieces = random.Random(1), 4096
    gc.collect()
    tracemalloc.start()
    blocks = Blocks(pieces, 1e6)
    for time in range(1, 2001):
        blocks.touch([rng.getrandbits(61) for _ in range(64)], float(time))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"{used / pieces:.0f} bytes for a piece")
    assert len(blocks) == pieces and used < 300 * pieces
