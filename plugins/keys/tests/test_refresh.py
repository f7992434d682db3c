"""A running gateway follows what other processes do to the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import headrace_keys
from headrace.errors import PluginError
from headrace.gateway import Gateway
from headrace.limits import RateLimits
from headrace_keys import Plugin, mirror, refresh
from headrace_keys.mirror import Mirror
from headrace_keys.record import Record
from headrace_keys.sqlite_store import SQLiteStore
from headrace_keys.store import Store

Make = Callable[..., Gateway]
Works = Callable[[Gateway, str], Awaitable[bool]]


def revoke(database: Path, key: str) -> None:
    with Store.open(database) as store, store.writing():
        store.revoke(key.split("-")[1])


async def test_a_key_made_before_the_start_works_at_once(
    make_gateway: Make, create_elsewhere: Callable[[str], str], let_in: Works
) -> None:
    key = create_elsewhere("alice")
    gateway = make_gateway()
    async with gateway.running():
        assert await let_in(gateway, key)


async def test_limits_that_nothing_enforces_are_told_of_at_the_start(
    make_gateway: Make, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Store.open(database) as store, store.writing():
        store.create("alice", limits=RateLimits(concurrent=1))
    async with make_gateway().running():
        pass
    (line,) = [record.message for record in caplog.records if "enforces" in record.message]
    assert "'ratelimit'" in line


async def test_keys_made_and_revoked_by_another_process_count_within_a_second(
    make_gateway: Make,
    database: Path,
    create_elsewhere: Callable[[str], str],
    eventually: Any,
    let_in: Works,
    kept_out: Works,
) -> None:
    gateway = make_gateway(failures_per_minute=0)
    creations, revocations = [], []
    async with gateway.running():
        for number in range(3):  # the best of three: a busy machine may delay one
            key = await asyncio.to_thread(create_elsewhere, f"key {number}")
            creations.append(await eventually(lambda key=key: let_in(gateway, key)))
            await asyncio.to_thread(revoke, database, key)
            revocations.append(await eventually(lambda key=key: kept_out(gateway, key)))
    assert min(creations) < 1 and min(revocations) < 1


async def test_the_keys_are_read_again_only_after_a_change(
    make_gateway: Make,
    create_elsewhere: Callable[[str], str],
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    let_in: Works,
) -> None:
    looks: list[Store] = []
    reads: list[Store] = []
    version, records = SQLiteStore.version, Store.records

    def watched_version(store: SQLiteStore) -> int:
        looks.append(store)
        return version(store)

    def watched_records(store: Store) -> list[Record]:
        reads.append(store)
        return records(store)

    monkeypatch.setattr(SQLiteStore, "version", watched_version)
    monkeypatch.setattr(Store, "records", watched_records)
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():

        async def looked() -> bool:
            return await let_in(gateway, "") or len(looks) >= 5

        await eventually(looked)
        assert len(reads) == 1
        key = await asyncio.to_thread(create_elsewhere, "alice")
        await eventually(lambda: let_in(gateway, key))
        assert len(reads) == 2


async def test_a_backup_restored_into_the_database_counts_without_a_restart(
    make_gateway: Make, database: Path, tmp_path: Path, eventually: Any, let_in: Works
) -> None:
    with Store.open(tmp_path / "backup.db") as store, store.writing():
        key = store.create("restored")[1].reveal()
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():
        with (
            contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as backup,
            contextlib.closing(sqlite3.connect(database)) as live,
        ):
            backup.backup(live)  # what `sqlite3 keys.db ".restore backup.db"` does
        await eventually(lambda: let_in(gateway, key))


async def test_while_the_database_cannot_be_read_the_old_keys_stay_and_it_is_said_once(
    make_gateway: Make,
    database: Path,
    tmp_path: Path,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    let_in: Works,
    kept_out: Works,
) -> None:
    with Store.open(database) as store, store.writing():
        key = store.create("alice")[1].reveal()
    gateway = make_gateway(refresh_seconds=0.05)
    aside = tmp_path / "aside.db"

    def said(level: int) -> list[str]:
        return [each.getMessage() for each in caplog.records if (each.name, each.levelno) == ("headrace.keys", level)]

    with caplog.at_level(logging.INFO, "headrace.keys"):
        async with gateway.running():
            database.rename(aside)

            async def complained() -> bool:
                assert await let_in(gateway, key)
                return bool(said(logging.ERROR))

            await eventually(complained)
            database.write_text("not a database" * 100)
            await asyncio.sleep(0.3)  # several looks, each of which fails
            assert await let_in(gateway, key)
            assert len(said(logging.ERROR)) == 1 and "stay in force" in said(logging.ERROR)[0]
            aside.rename(database)
            await eventually(lambda: bool(said(logging.WARNING)))
            assert await let_in(gateway, key)
            revoke(database, key)
            await eventually(lambda: kept_out(gateway, key))
    assert key.split("-")[2] not in caplog.text
    assert len(said(logging.ERROR)) == len(said(logging.WARNING)) == 1


async def test_a_writer_that_holds_the_lock_does_not_hold_up_requests(
    make_gateway: Make, database: Path, create_elsewhere: Callable[[str], str], let_in: Works
) -> None:
    key = create_elsewhere("alice")
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():
        holder = sqlite3.connect(database, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            slowest = 0.0
            for _ in range(20):
                started = time.perf_counter()
                await asyncio.sleep(0.01)
                assert await let_in(gateway, key)
                slowest = max(slowest, time.perf_counter() - started)
            assert slowest < 1
        finally:
            holder.close()


async def test_a_damaged_database_stops_the_start_with_a_clear_error(make_gateway: Make, database: Path) -> None:
    database.write_text("not a database" * 100)
    with pytest.raises(PluginError, match=r"plugin 'keys': .*damaged"):
        async with make_gateway().running():
            pass


async def test_nothing_of_the_plugin_is_left_running_after_the_end(make_gateway: Make, database: Path) -> None:
    before = asyncio.all_tasks()
    async with make_gateway(refresh_seconds=0.05).running():
        assert asyncio.all_tasks() != before
    assert asyncio.all_tasks() == before
    assert not (database.parent / "keys.db-wal").exists(), "the last connection was closed properly"


async def test_the_path_of_the_database_may_be_absolute(make_gateway: Make, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with make_gateway(database=str(elsewhere / "k.db")).running():
        assert (elsewhere / "k.db").exists()


async def test_while_its_files_stay_as_they_are_the_database_is_left_alone(
    make_gateway: Make,
    create_elsewhere: Callable[[str], str],
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    let_in: Works,
    kept_out: Works,
) -> None:
    asked, looks = 0, 0
    is_unchanged, look = Mirror.is_unchanged, Mirror.look

    def counted_question(asking: Mirror) -> bool:
        nonlocal asked
        asked += 1
        return is_unchanged(asking)

    def counted_look(looking: Mirror) -> None:
        nonlocal looks
        looks += 1
        look(looking)

    monkeypatch.setattr(Mirror, "is_unchanged", counted_question)
    monkeypatch.setattr(Mirror, "look", counted_look)
    monkeypatch.setattr(mirror, "SURE_NS", 0)
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():

        async def often() -> bool:
            return await let_in(gateway, "") or asked >= 10

        await eventually(often)
        assert looks <= 2
        key = await asyncio.to_thread(create_elsewhere, "alice")
        await eventually(lambda: let_in(gateway, key))
        await asyncio.to_thread(revoke, gateway.plugins["keys"].database, key)
        await eventually(lambda: kept_out(gateway, key))


async def test_a_gateway_that_nobody_asks_does_not_look(make_gateway: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def watched_call_at(when: float, *rest: Any, **more: Any) -> Any:
            timers.append(when)
            return call_at(when, *rest, **more)

        monkeypatch.setattr(loop, "call_at", watched_call_at)
        await asyncio.sleep(0)  # what follows the database begins
        plugin: Plugin = gateway.plugins["keys"]
        assert plugin.watch is not None and plugin.watch.due < float("inf")
    assert timers == []


async def test_the_first_request_after_a_long_silence_finds_the_keys_as_they_are(
    make_gateway: Make,
    database: Path,
    create_elsewhere: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    let_in: Works,
) -> None:
    key = create_elsewhere("alice")
    gateway = make_gateway(refresh_seconds=60)
    async with gateway.running():
        assert await let_in(gateway, key)
        await asyncio.to_thread(revoke, database, key)
        assert await let_in(gateway, key)  # it was looked at just now
        monkeypatch.setattr(headrace_keys, "monotonic", lambda: time.monotonic() + 61)
        assert await asyncio.gather(*(let_in(gateway, key) for _ in range(3))) == [False] * 3


async def test_requests_do_not_wait_for_a_database_that_could_not_be_read(
    make_gateway: Make,
    database: Path,
    create_elsewhere: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    let_in: Works,
) -> None:
    key = create_elsewhere("alice")
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():
        failed, released = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def look(self: Mirror) -> None:
            loop.call_soon_threadsafe(failed.set)
            raise PluginError("keys", "out of reach")

        def hang(self: Mirror) -> None:
            loop.call_soon_threadsafe(failed.set)
            released.wait(20)

        monkeypatch.setattr(Mirror, "is_unchanged", lambda self: False)
        monkeypatch.setattr(Mirror, "look", look)
        while not failed.is_set():
            assert await let_in(gateway, key)
            await asyncio.sleep(0.01)
        failed.clear()
        monkeypatch.setattr(Mirror, "look", hang)
        await failed.wait()  # the next look came without a request
        before = time.perf_counter()
        assert await let_in(gateway, key)
        assert time.perf_counter() - before < 0.5
        released.set()


async def test_a_database_that_hangs_holds_up_no_more_than_the_first_requests(
    make_gateway: Make, create_elsewhere: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, let_in: Works
) -> None:
    key = create_elsewhere("alice")
    monkeypatch.setattr(refresh, "MOST_SECONDS", 0.1)
    gateway = make_gateway(refresh_seconds=0.05)
    async with gateway.running():
        hanging, released, look = threading.Event(), threading.Event(), Mirror.look

        def hang(self: Mirror) -> None:
            hanging.set()
            released.wait(20)
            look(self)

        monkeypatch.setattr(Mirror, "is_unchanged", lambda self: False)
        monkeypatch.setattr(Mirror, "look", hang)
        while not hanging.is_set():
            assert await let_in(gateway, key)
            await asyncio.sleep(0.01)
        watch = gateway.plugins["keys"].watch
        assert watch.due == float("inf")
        assert await let_in(gateway, key)
        monkeypatch.setattr(Mirror, "look", look)
        released.set()
        async with asyncio.timeout(20):
            while watch.due == float("inf"):
                await asyncio.sleep(0)
