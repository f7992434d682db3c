"""Of the requests that went well a share is logged; of all others every one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from headrace_logs.sampling import Sampling

if TYPE_CHECKING:
    from plugins.logs.tests.conftest import Run

CHANCE = random.Random(7)
IDS = [f"{CHANCE.getrandbits(128):032x}" for _ in range(20_000)]


def chosen(ratio: float) -> set[str]:
    sampling = Sampling(ratio, None)
    return {each for each in IDS if sampling.share(each, 1.0)}


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 0.9])
def test_about_as_many_are_chosen_as_wanted(ratio: float) -> None:
    assert abs(len(chosen(ratio)) / len(IDS) - ratio) < 0.01


def test_every_worker_chooses_the_same() -> None:
    assert chosen(0.1) == chosen(0.1)


def test_what_a_small_share_has_a_larger_one_has_too() -> None:
    assert chosen(0.05) < chosen(0.1) < chosen(0.5)


def test_none_is_chosen_with_nought() -> None:
    assert chosen(0.0) == set()


def test_a_chosen_one_stands_for_its_share_and_a_slow_one_for_itself() -> None:
    sampling = Sampling(0.1, 2.0)
    assert {sampling.share(each, 1.9) for each in IDS} == {0.0, 0.1}
    assert {sampling.share(each, 2.0) for each in IDS} == {None}


async def test_a_line_tells_for_how_large_a_share_it_stands(run: Run) -> None:
    async with run(sample=0.5) as gateway:
        for number in range(40):
            await gateway.chat("ok", headers={"X-Request-ID": f"request-{number}"})
    lines = gateway.requests()
    assert 5 < len(lines) < 35
    assert {line["sample_ratio"] for line in lines} == {0.5}
    sampling = Sampling(0.5, None)
    expected = [each for each in (f"request-{number}" for number in range(40)) if sampling.share(each, 0)]
    assert [line["request_id"] for line in lines] == expected


async def test_refused_failed_and_cut_requests_are_always_logged(run: Run) -> None:
    async with run(sample=0.0) as gateway:
        await gateway.chat("ok")
        await gateway.chat("unknown")
        await gateway.chat("fails")
        await gateway.chat("cuts", stream=True)
    lines = gateway.requests()
    assert [line["level"] for line in lines] == ["warning", "error", "error"]
    assert not [line for line in lines if "sample_ratio" in line]


async def test_slow_requests_are_always_logged(run: Run) -> None:
    async with run(sample=0.0, slow_seconds=0.000001) as gateway:
        await gateway.chat("ok")
    (line,) = gateway.requests()
    assert "sample_ratio" not in line


async def test_without_sampling_lines_say_nothing_of_it(run: Run) -> None:
    async with run() as gateway:
        await gateway.chat("ok")
    (line,) = gateway.requests()
    assert "sample_ratio" not in line
