"""`/admin/keys` over real sockets: what it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import serve
from headrace_keys.record import Record
from headrace_keys.store import Store


def document(state_dir: Path, **keys: Any) -> dict[str, Any]:
    return {
        "server": {"state_dir": str(state_dir), "body_timeout": 2.0},
        "backends": {"b": {"provider": "openai", "base_url": "http://127.0.0.1:9"}},
        "models": {"large": {"targets": ["b"], "aliases": ["big"]}},
        "plugins": {"openai": {}, "keys": {"admin_api": True, **keys}},
    }


@contextlib.asynccontextmanager
async def client_of(state_dir: Path, key: str, **keys: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serve(document(state_dir, **keys)) as running,
        httpx.AsyncClient(base_url=running.url, headers={"X-API-Key": key}, timeout=30) as client,
    ):
        yield client


def make(database: Path, name: str, **fields: Any) -> tuple[Record, str]:
    with Store.open(database) as store, store.writing():
        record, key = store.create(name, **fields)
    return record, key.reveal()


@pytest.fixture
def boss(database: Path) -> tuple[Record, str]:
    return make(database, "boss", role="admin")


@pytest.fixture
async def admin(tmp_path: Path, boss: tuple[Record, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(tmp_path, boss[1], refresh_seconds=60) as client:
        yield client


async def works(client: httpx.AsyncClient, key: str) -> bool:
    return (await client.get("/v1/models", headers={"X-API-Key": key})).status_code == 200


async def test_a_key_that_is_created_works_when_the_answer_is_out(admin: httpx.AsyncClient) -> None:
    made = await admin.post("/admin/keys", json={"name": "alice"})
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    assert await works(admin, made.json()["key"])


async def test_a_key_may_be_created_with_everything_it_can_have(admin: httpx.AsyncClient) -> None:
    wanted = {
        "name": "laptop",
        "role": "metrics",
        "owner": "alice",
        "team": "research",
        "models": ["large"],
        "endpoints": ["chat"],
        "limits": {"tokens_per_day": 5},
        "budget": {"cost_per_month": 1.5},
        "metadata": {"ticket": 42, "nice": True},
        "expires": "2099-01-31T00:00:00Z",
    }
    made = (await admin.post("/admin/keys", json=wanted)).json()
    assert {name: made[name] for name in wanted} == wanted
    assert made["state"] == "active"
    assert made["warnings"] == [
        "the key's limits will not be enforced: the plugin 'ratelimit' is not enabled",
        "the key's budget will not be enforced: the plugin 'budget' is not enabled",
    ]


async def test_an_alias_counts_as_its_model_and_unknown_names_are_warned_about(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"name": "x", "models": ["big", "huge"], "endpoints": ["cat"]})).json()
    assert made["models"] == ["large", "huge"]
    assert [each.partition(" (")[0] for each in made["warnings"]] == [
        "there is no model 'huge' in the configuration",
        "there is no endpoint 'cat'",
    ]


async def test_a_key_is_shown_without_its_secret(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
    shown = await admin.get(f"/admin/keys/{made['id']}")
    secret = made.pop("key").split("-")[2]
    del made["warnings"]
    assert shown.json() == made and secret not in shown.text


async def test_a_change_is_in_force_when_the_answer_is_out(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
    changed = await admin.patch(f"/admin/keys/{made['id']}", json={"models": ["other"], "team": "x"})
    assert (changed.status_code, changed.json()["models"], changed.json()["team"]) == (200, ["other"], "x")
    listed = await admin.get("/v1/models", headers={"X-API-Key": made["key"]})
    assert listed.json()["data"] == []


async def test_null_takes_a_field_away_and_what_is_not_given_stays(admin: httpx.AsyncClient) -> None:
    wanted = {"name": "alice", "team": "x", "limits": {"concurrent": 1}}
    made = (await admin.post("/admin/keys", json=wanted)).json()
    changed = (await admin.patch(f"/admin/keys/{made['id']}", json={"limits": None})).json()
    assert (changed["limits"], changed["team"]) == (None, "x")


async def test_a_key_that_is_revoked_stops_working_when_the_answer_is_out(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
    revoked = await admin.delete(f"/admin/keys/{made['id']}")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    assert not await works(admin, made["key"])


async def test_revoking_twice_is_the_same_as_once(admin: httpx.AsyncClient) -> None:
    made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
    first, second = [await admin.delete(f"/admin/keys/{made['id']}") for _ in range(2)]
    assert first.status_code == second.status_code == 200 and first.json()["revoked"] == second.json()["revoked"]


@pytest.mark.parametrize(
    ("body", "old_works"), [(None, True), ({"grace_seconds": 60}, True), ({"grace_seconds": 0}, False)]
)
async def test_a_rotated_key_has_a_new_secret_at_once(
    admin: httpx.AsyncClient, body: dict[str, Any] | None, old_works: bool
) -> None:
    made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
    rotated = await admin.post(f"/admin/keys/{made['id']}/rotate", json=body) if body else None
    rotated = rotated or await admin.post(f"/admin/keys/{made['id']}/rotate")
    assert rotated.status_code == 200 and rotated.json()["key"] != made["key"]
    assert (rotated.json()["former_until"] is not None) == old_works
    assert await works(admin, rotated.json()["key"])
    assert await works(admin, made["key"]) == old_works


async def test_the_list_goes_page_by_page(admin: httpx.AsyncClient) -> None:
    for number in range(4):
        await admin.post("/admin/keys", json={"name": f"key {number}"})
    names, after, pages = [], "", 0
    while True:
        page = (await admin.get(f"/admin/keys?limit=2{after}")).json()
        names += [key["name"] for key in page["data"]]
        pages += 1
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert names == ["boss", "key 0", "key 1", "key 2", "key 3"] and pages == 3


async def test_the_list_filters_by_team(admin: httpx.AsyncClient) -> None:
    for team in ("a", "b"):
        await admin.post("/admin/keys", json={"name": team, "team": team})
    page = (await admin.get("/admin/keys?team=b")).json()
    assert [key["name"] for key in page["data"]] == ["b"] and page["has_more"] is False


async def test_other_gateways_follow_within_a_second(
    tmp_path: Path, boss: tuple[Record, str], eventually: Any, let_in: Any
) -> None:
    other = Gateway(parse(document(tmp_path))).assemble()
    async with client_of(tmp_path, boss[1]) as client, other.running():
        times = []
        for _ in range(3):  # the best of three: a busy machine may delay one
            key = (await client.post("/admin/keys", json={"name": "alice"})).json()["key"]
            times.append(await eventually(lambda key=key: let_in(other, key)))
    assert min(times) < 1


async def test_every_change_leaves_a_line_in_the_audit_log_without_a_secret(
    admin: httpx.AsyncClient, boss: tuple[Record, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        made = (await admin.post("/admin/keys", json={"name": "alice"})).json()
        rotated = (await admin.post(f"/admin/keys/{made['id']}/rotate")).json()
        await admin.patch(f"/admin/keys/{made['id']}", json={"team": "x"})
        await admin.delete(f"/admin/keys/{made['id']}")
    lines = [each.getMessage() for each in caplog.records if each.name == "headrace.keys.audit"]
    what = ["created key", "rotated (the secret before ends in 86400 s) key", "changed team of key", "revoked key"]
    assert all(f"{each} {made['id']} ('alice')" in line for each, line in zip(what, lines, strict=True))
    assert all(line.startswith(f"API, '{boss[0].id}' ('boss'), request ") for line in lines)
    for key in (made["key"], rotated["key"], boss[1]):
        assert key.split("-")[2] not in caplog.text


async def test_without_the_option_there_is_nothing(tmp_path: Path, boss: tuple[Record, str]) -> None:
    async with client_of(tmp_path, boss[1], admin_api=False) as client:
        assert (await client.get("/admin/keys")).status_code == 404


async def test_the_event_loop_does_not_wait_for_a_database_that_is_locked(
    admin: httpx.AsyncClient, boss: tuple[Record, str], database: Path, locked: Callable[[], Any]
) -> None:
    with locked():
        waiting = asyncio.create_task(admin.post("/admin/keys", json={"name": "alice"}))
        slowest = 0.0
        for _ in range(10):
            started = time.perf_counter()
            assert await works(admin, boss[1])
            slowest = max(slowest, time.perf_counter() - started)
        assert not waiting.done() and slowest < 2
    assert (await waiting).status_code == 201
