"""The store itself: limits, times, several processes' worth of connections."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import Unavailable
from headrace_responses.shelf import Shelf
from headrace_responses.store import MEMORY, Entry, Store, StoreError


def entry(name: str, caller: str = "ada", size: int = 100, expires: float = 60.0, items: tuple[str, ...] = ()) -> Entry:
    return Entry(caller, name, b"x" * size, b"[]", items, time.time() + expires)


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return MEMORY if request.param == "memory" else str(tmp_path / "responses.db")


@pytest.fixture
def make(place: str) -> Iterator[Any]:
    made = []

    def make(max_entries: int = 100, max_bytes: int = 1_000_000, at: str = place) -> Store:
        store = Store(at, max_entries, max_bytes)
        store.open()
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


def names(store: Store, caller: str, among: list[str]) -> list[str]:
    return [name for name in among if store.get(caller, name) is not None]


def test_what_is_put_is_found_by_its_caller_alone(make: Any) -> None:
    store = make()
    store.put([entry("r1")])
    found = store.get("ada", "r1")
    assert found is not None and found.body == b"x" * 100
    assert store.get("bob", "r1") is None


def test_what_has_expired_is_not_found_and_then_deleted(make: Any) -> None:
    store = make()
    store.put([entry("old", expires=-1), entry("new")])
    assert names(store, "ada", ["old", "new"]) == ["new"]
    store.purge()
    assert store._database.execute("SELECT id FROM response").fetchall() == [("new",)]


def test_beyond_its_number_of_entries_whoever_has_most_loses_their_oldest(make: Any) -> None:
    store = make(max_entries=4)
    store.put([entry("b1", "bob")])
    for number in range(6):
        store.put([entry(f"a{number}")])
    assert names(store, "ada", [f"a{number}" for number in range(6)]) == ["a3", "a4", "a5"]
    assert names(store, "bob", ["b1"]) == ["b1"]


def test_beyond_its_bytes_whoever_has_most_loses_their_oldest(make: Any) -> None:
    store = make(max_bytes=1000)
    store.put([entry("b1", "bob", 300), entry("a1", size=250), entry("a2", size=250)])
    store.put([entry("a3", size=250)])
    assert names(store, "ada", ["a1", "a2", "a3"]) == ["a2", "a3"]
    assert names(store, "bob", ["b1"]) == ["b1"]


def test_an_answer_is_found_by_an_item_of_its_output_until_it_is_deleted(make: Any) -> None:
    store = make()
    store.put([entry("r1", items=("msg_1",))])
    assert store.owner("ada", "msg_1").id == "r1"
    assert store.owner("bob", "msg_1") is None
    assert store.delete("ada", "r1") and not store.delete("ada", "r1")
    assert store.owner("ada", "msg_1") is None


def test_an_id_that_is_put_again_replaces_what_was_there(make: Any) -> None:
    store = make()
    store.put([entry("r1", size=10)])
    store.put([entry("r1", size=20)])
    assert len(store.get("ada", "r1").body) == 20
    assert store._database.execute("SELECT entries, bytes FROM share").fetchall() == [(1, 22)]


def test_workers_see_what_another_has_put(make: Any, tmp_path: Path) -> None:
    one, other = (make(at=str(tmp_path / "shared.db")) for _ in range(2))
    one.put([entry("r1")])
    assert names(other, "ada", ["r1"]) == ["r1"]
    assert other.delete("ada", "r1")
    assert names(one, "ada", ["r1"]) == []


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "other.db"
    with sqlite3.connect(place) as database:
        database.execute("CREATE TABLE precious (x)")
    database.close()
    with pytest.raises(StoreError, match="something else"):
        Store(str(place), 1, 1).open()


def test_nothing_of_what_was_deleted_is_left_in_the_files(make: Any, tmp_path: Path) -> None:
    store = make(at=str(tmp_path / "secret.db"))
    kept = entry("r1")
    kept.body = b"a secret of ada's"
    store.put([kept, entry("r2")])
    assert any(b"a secret" in file.read_bytes() for file in tmp_path.glob("secret.db*"))
    store.delete("ada", "r1")
    store.purge()
    assert not any(b"a secret" in file.read_bytes() for file in tmp_path.glob("secret.db*"))


class Slow(Store):
    """Waits before it writes, and fails if told to."""

    def __init__(self) -> None:
        super().__init__(MEMORY, 100, 1_000_000)
        self.go, self.fails = threading.Event(), False

    def put(self, entries: Any) -> None:
        self.go.wait(20)
        if self.fails:
            raise StoreError("the disk is full")
        super().put(entries)


async def test_what_is_put_is_there_before_it_is_written() -> None:
    store = Slow()
    shelf = Shelf(store)
    async with shelf.running():
        shelf.put(entry("r1", items=("msg_1",)))
        await asyncio.sleep(0)
        assert (await shelf.get("ada", "r1")) is not None
        assert (await shelf.owner("ada", "msg_1")) is not None
        store.go.set()


async def test_what_is_deleted_while_it_is_being_written_is_gone() -> None:
    store = Slow()
    shelf = Shelf(store)
    async with shelf.running():
        shelf.put(entry("r1"))
        await asyncio.sleep(0)
        deleting = asyncio.create_task(shelf.delete("ada", "r1"))
        await asyncio.sleep(0)
        store.go.set()
        assert await deleting
        assert await shelf.get("ada", "r1") is None


async def test_everything_is_written_at_the_end(tmp_path: Path) -> None:
    place = str(tmp_path / "responses.db")
    shelf = Shelf(Store(place, 10_000, 10_000_000))
    async with shelf.running():
        for number in range(500):
            shelf.put(entry(f"r{number}"))
    again = Store(place, 10_000, 10_000_000)
    again.open()
    assert all(again.get("ada", f"r{number}") for number in range(500))
    again.close()


async def test_what_cannot_be_written_is_lost_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    store = Slow()
    store.fails = True
    shelf = Shelf(store)
    store.go.set()
    async with shelf.running():
        shelf.put(entry("r1"))
        async with asyncio.timeout(20):
            while await shelf.get("ada", "r1") is not None:
                await asyncio.sleep(0.01)
    assert "1 responses could not be kept since the start: the disk is full" in caplog.text


async def test_a_disk_that_is_too_slow_does_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    store = Slow()
    shelf = Shelf(store)
    async with shelf.running():
        for number in range(100):
            shelf.put(entry(f"r{number}", size=1_000_000))
        assert shelf._unwritten_bytes <= 67_108_864
        store.go.set()
    assert "the disk is too slow" in caplog.text


async def test_a_store_that_cannot_be_read_is_unavailable() -> None:
    class Broken(Store):
        def get(self, caller: str, name: str) -> Entry | None:
            raise StoreError("the disk is gone")

    shelf = Shelf(Broken(MEMORY, 1, 1))
    async with shelf.running():
        with pytest.raises(Unavailable) as caught:
            await shelf.get("ada", "r1")
    assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
