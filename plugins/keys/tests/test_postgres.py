"""Keys on a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from headrace.errors import PluginError, Unauthenticated
from headrace.gateway import Gateway
from headrace.limits import Budget, RateLimits
from headrace.testing import serve
from headrace_keys.place import postgres_place
from headrace_keys.postgres_store import STATE, PostgresStore
from headrace_keys.store import SCHEMA_VERSION, Store

Make = Callable[..., Gateway]

HOLD = """
import sys
from headrace_keys.place import postgres_place
from headrace_keys.store import Store
with Store.open(postgres_place(sys.argv[1])) as store, store.writing():
    store.create("never")
    print("written", flush=True)
    sys.stdin.read()
"""
CREATE = """
import sys
from headrace_keys.place import postgres_place
from headrace_keys.store import Store
with Store.open(postgres_place(sys.argv[1])) as store, store.writing():
    print(store.create(sys.argv[2])[0].id)
"""


def opened(url: str, **options: Any) -> Store:
    return Store.open(postgres_place(url), **options)


def create(url: str, name: str = "alice", **fields: Any) -> str:
    with opened(url) as store, store.writing():
        return store.create(name, **fields)[1].reveal()


def revoke(url: str, key: str) -> None:
    with opened(url) as store, store.writing():
        store.revoke(key.split("-")[1])


def works(gateway: Gateway, key: str) -> bool:
    try:
        return gateway.plugins["keys"].ring.authenticate([(b"x-api-key", key.encode())]) is not None
    except Unauthenticated:
        return False


def test_what_was_written_is_read_back(postgres_url: str) -> None:
    fields = {
        "role": "metrics",
        "models": ["a", "b/c"],
        "endpoints": ("chat",),
        "owner": "Zoë 'x'",
        "team": "a:b",
        "limits": RateLimits(concurrent=1),
        "budget": Budget(cost_per_day=0.1),
        "metadata": {"a": 1, "ü": [True]},
        "expires": time.time() + 0.123456789,
    }
    with opened(postgres_url) as store, store.writing():
        written, _ = store.create("Zoë's laptop :id $1 %s", **fields)
    with opened(postgres_url) as store:
        assert store.records() == [written]
        with store.writing():
            rotated, _ = store.rotate(written, time.time() + 60)
        assert store.records() == [rotated]
        with store.writing():
            store.revoke(written.id)
        assert store.records()[0].revoked is not None
        with store.writing():
            store.delete([written.id])
        assert store.records() == []


def test_what_fails_halfway_leaves_nothing(postgres_url: str) -> None:
    with opened(postgres_url) as store:
        with pytest.raises(RuntimeError), store.writing():
            store.create("alice")
            raise RuntimeError
        assert store.records() == []


def test_the_version_changes_with_every_transaction_that_writes(postgres_url: str) -> None:
    with opened(postgres_url) as one, opened(postgres_url) as other:
        before = one.version()
        with other.writing():
            other.create("alice")
        assert before != one.version() == one.version()


def test_processes_that_start_together_share_one_new_database(postgres_url: str) -> None:
    def create_elsewhere(number: int) -> str:
        argv = [sys.executable, "-c", CREATE, postgres_url, str(number)]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(create_elsewhere, range(4)))
    with opened(postgres_url) as store:
        assert {record.id for record in store.records()} == ids and len(ids) == 4


def test_whoever_finds_the_tables_made_leaves_them_as_they_are(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, make_tables = threading.Barrier(4), PostgresStore._make_tables

    def all_at_once(store: PostgresStore) -> None:
        together.wait(30)  # by now every one of them has seen that there are none
        make_tables(store)

    monkeypatch.setattr(PostgresStore, "_make_tables", all_at_once)

    def keys_found(_: int) -> int:
        with opened(postgres_url) as store:
            return len(store.records())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(keys_found, range(4))) == [0] * 4


def test_a_writer_waits_for_another_but_not_for_ever(postgres_url: str) -> None:
    with opened(postgres_url) as one, opened(postgres_url, wait_seconds=0.3) as other, one.writing():
        started = time.monotonic()
        with pytest.raises(PluginError, match="it is locked by another process"), other.writing():
            pass
        assert time.monotonic() - started < 10


def test_a_process_killed_in_mid_transaction_leaves_nothing_and_holds_up_nobody(postgres_url: str) -> None:
    argv = [sys.executable, "-c", HOLD, postgres_url]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "written\n"
        finally:
            child.send_signal(signal.SIGKILL)
    create(postgres_url, "afterwards")
    with opened(postgres_url) as store:
        assert [record.name for record in store.records()] == ["afterwards"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wr0ng"}, "password authentication failed"),
        ({"password": ""}, "password authentication failed"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
    ],
)
def test_who_or_what_the_server_does_not_know_is_a_clear_error(
    postgres: Any, change: dict[str, str], said: str
) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        opened(postgres.url(**change))
    assert "wr0ng" not in str(caught.value)


def test_a_server_that_is_not_there_is_a_clear_error(unused_port: int) -> None:
    with pytest.raises(PluginError, match=r"no connection .*refused"):
        opened(f"postgresql://u:p@127.0.0.1:{unused_port}/d")


def test_a_server_that_never_answers_is_given_up(silent_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(PluginError, match="does not answer in time"):
        opened(f"postgresql://u:p@127.0.0.1:{silent_port}/d?sslmode=disable", wait_seconds=0.3)
    assert time.monotonic() - started < 10


def test_a_newer_schema_is_refused_with_what_to_do(postgres_url: str) -> None:
    with opened(postgres_url) as store:
        store.run(f"UPDATE {STATE} SET schema_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(PluginError, match="upgrade headrace-keys"):
        opened(postgres_url)


def test_the_unix_socket_is_spoken_to(postgres: Any) -> None:
    with opened(f"postgresql://owner:right@/postgres?host={postgres.directory}&port={postgres.port}") as store:
        assert store.version() > 0


@pytest.mark.parametrize("mode", ["disable", "prefer", "require"])
def test_tls_is_used_as_asked(postgres: Any, mode: str) -> None:
    with opened(f"{postgres.url()}?sslmode={mode}") as store:
        ((encrypted,),) = store.run("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert encrypted is (mode != "disable")


def test_a_server_that_proves_itself_is_trusted(postgres: Any) -> None:
    with opened(f"{postgres.url()}?sslmode=verify-full&sslrootcert={postgres.certificate}") as store:
        assert store.version() > 0


def test_a_server_that_cannot_prove_itself_is_refused(postgres: Any) -> None:
    with pytest.raises(PluginError, match="certificate verify failed"):
        opened(f"{postgres.url()}?sslmode=verify-full")
    named_otherwise = postgres.url().replace("127.0.0.1", "localhost")
    with pytest.raises(PluginError, match="certificate verify failed"):
        opened(f"{named_otherwise}?sslmode=verify-full&sslrootcert={postgres.certificate}")


def test_authorities_that_cannot_be_read_are_a_clear_error(postgres: Any) -> None:
    with pytest.raises(PluginError, match=r"sslrootcert .*nowhere"):
        opened(f"{postgres.url()}?sslmode=verify-full&sslrootcert=/nowhere")


async def test_keys_made_and_revoked_elsewhere_count_within_a_second(
    make_gateway: Make, postgres_url: str, eventually: Any
) -> None:
    gateway = make_gateway(database=postgres_url)
    creations, revocations = [], []
    async with gateway.running():
        for number in range(3):  # the best of three: a busy machine may delay one
            key = await asyncio.to_thread(create, postgres_url, f"key {number}")
            creations.append(await eventually(lambda key=key: works(gateway, key)))
            await asyncio.to_thread(revoke, postgres_url, key)
            revocations.append(await eventually(lambda key=key: not works(gateway, key)))
    assert min(creations) < 1 and min(revocations) < 1


async def test_the_admin_api_works_on_a_server(postgres_url: str) -> None:
    boss = await asyncio.to_thread(create, postgres_url, "boss", role="admin")
    document = {"plugins": {"keys": {"database": postgres_url, "admin_api": True, "refresh_seconds": 60}}}
    async with (
        serve(document) as running,
        httpx.AsyncClient(base_url=running.url, headers={"X-API-Key": boss}, timeout=30) as admin,
    ):
        made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
        assert works(running.gateway, made["key"])
        await admin.delete(f"/admin/keys/{made['id']}")
        assert not works(running.gateway, made["key"])


async def test_while_the_server_is_away_the_keys_read_last_stay_and_it_is_said_once(
    make_gateway: Make, postgres: Any, postgres_url: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    key = await asyncio.to_thread(create, postgres_url)
    gateway = make_gateway(database=postgres_url, refresh_seconds=0.05)

    def said(level: int) -> list[str]:
        return [each.getMessage() for each in caplog.records if (each.name, each.levelno) == ("headrace.keys", level)]

    with caplog.at_level(logging.INFO, "headrace.keys"):
        async with gateway.running():
            await asyncio.to_thread(postgres.stop)
            try:
                await eventually(lambda: bool(said(logging.ERROR)))
                await asyncio.sleep(0.3)  # several looks, each of which fails
                assert works(gateway, key)
            finally:
                await asyncio.to_thread(postgres.start)
            await eventually(lambda: bool(said(logging.WARNING)))
            assert works(gateway, key)
            await asyncio.to_thread(revoke, postgres_url, key)
            await eventually(lambda: not works(gateway, key))
    assert len(said(logging.ERROR)) == len(said(logging.WARNING)) == 1 and "stay in force" in said(logging.ERROR)[0]
    assert "right" not in caplog.text and key.split("-")[2] not in caplog.text


async def test_tables_that_vanish_do_not_take_the_keys_with_them(
    make_gateway: Make, postgres_url: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    key = await asyncio.to_thread(create, postgres_url)
    gateway = make_gateway(database=postgres_url, refresh_seconds=0.05)

    def drop() -> None:
        with opened(postgres_url) as store:
            store.run(f"DROP TABLE {STATE}, headrace_keys")

    async with gateway.running():
        await asyncio.to_thread(drop)
        await eventually(lambda: "stay in force" in caplog.text)
        await asyncio.sleep(0.3)  # several looks: none of them makes new tables
        assert works(gateway, key)


async def test_a_server_that_is_away_stops_the_start(make_gateway: Make, unused_port: int) -> None:
    with pytest.raises(PluginError, match="no connection"):
        async with make_gateway(database=f"postgresql://u:p@127.0.0.1:{unused_port}/d").running():
            pass
