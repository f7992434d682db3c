"""Whoever tries many wrong keys is told to wait; right keys are not."""

from __future__ import annotations

import logging
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.errors import RateLimited
from headrace.testing import serve
from headrace_keys import failures
from headrace_keys.failures import ADDRESSES, Failures, network_of
from headrace_keys.ring import WrongKey
from headrace_keys.store import Store

WRONG = "hr-000000000000-" + "a" * 32


def key_in(database: Path, **fields: Any) -> str:
    with Store.open(database) as store, store.writing():
        return store.create("alice", **fields)[1].reveal()


@pytest.fixture
def key(database: Path) -> str:
    return key_in(database)


@pytest.fixture
def revoked(database: Path) -> str:
    return key_in(database, revoked=time.time())


@pytest.fixture
async def client(tmp_path: Path, key: str, revoked: str) -> AsyncIterator[httpx.AsyncClient]:
    document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"keys": {"failures_per_minute": 3}}}
    async with serve(document) as running, httpx.AsyncClient(base_url=running.url) as client:
        yield client


async def statuses(client: httpx.AsyncClient, *keys: str) -> list[int]:
    return [(await client.get("/v1/models", headers={"X-API-Key": key})).status_code for key in keys]


async def test_after_some_wrong_keys_further_ones_are_answered_429(client: httpx.AsyncClient) -> None:
    assert await statuses(client, WRONG, "hr-cut", WRONG, WRONG, "hr-cut") == [401, 401, 401, 429, 429]


async def test_the_answer_says_how_long_to_wait(client: httpx.AsyncClient) -> None:
    await statuses(client, WRONG, WRONG, WRONG)
    refused = await client.get("/v1/models", headers={"X-API-Key": WRONG})
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "too_many_failures"


async def test_a_right_key_works_from_the_same_address(key: str, client: httpx.AsyncClient) -> None:
    assert await statuses(client, *[WRONG] * 4, key) == [401, 401, 401, 429, 200]


async def test_only_wrong_keys_count(revoked: str, client: httpx.AsyncClient) -> None:
    """Neither no key, nor another product's, nor a key that has ended: its holder is to learn why."""
    answers = await statuses(client, *["sk-other"] * 5, *[revoked] * 5)
    assert answers == [401] * 10


async def test_it_is_logged_once(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await statuses(client, *[WRONG] * 6)
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert said == ["more than 3 wrong keys within a minute from 127.0.0.1"]


async def test_without_a_limit_every_wrong_key_is_401(tmp_path: Path) -> None:
    document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"keys": {"failures_per_minute": 0}}}
    async with serve(document) as running, httpx.AsyncClient(base_url=running.url) as client:
        assert set(await statuses(client, *[WRONG] * 30)) == {401}


def answers(counted: Failures, address: str, times: int) -> list[int]:
    return [counted.answer(address, WrongKey("wrong")).status for _ in range(times)]


def test_addresses_are_counted_apart() -> None:
    counted = Failures(1)
    assert [*answers(counted, "192.0.2.1", 2), *answers(counted, "192.0.2.2", 2)] == [401, 429, 401, 429]


def test_a_minute_after_the_first_failure_all_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, now = Failures(2), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert answers(counted, "192.0.2.1", 3) == [401, 401, 429]
    now += 59.9
    error = counted.answer("192.0.2.1", WrongKey("wrong"))
    assert isinstance(error, RateLimited) and error.headers["Retry-After"] == "1"
    now += 0.1
    assert answers(counted, "192.0.2.1", 3) == [401, 401, 429]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", "an unknown address"),
        ("x" * 1000, "an unknown address"),
    ],
)
def test_an_address_counts_as(address: str, network: str) -> None:
    assert network_of(address) == network


def test_any_number_of_addresses_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "logger", logging.getLogger("unheard"))
    counted, error = Failures(5), WrongKey("wrong")
    tracemalloc.start()
    try:
        for number in range(2 * ADDRESSES):
            counted.answer(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", error)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(counted) == ADDRESSES and size < 4_000_000


def test_the_address_that_failed_last_is_remembered_longest() -> None:
    counted = Failures(1)
    answers(counted, "192.0.2.1", 1)
    for number in range(ADDRESSES - 1):
        answers(counted, f"10.0.{number >> 8}.{number & 255}", 1)
    answers(counted, "192.0.2.1", 1)
    answers(counted, "198.51.100.1", 1)  # the one that was seen longest ago is forgotten
    assert answers(counted, "192.0.2.1", 1) == [429] and answers(counted, "10.0.0.0", 1) == [401]
