"""A new secret for the same key, and the old one for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from headrace.errors import Unauthenticated
from headrace_keys.ring import KeyRing
from headrace_keys.store import Store

Run = Callable[..., Result]


def answer(database: Path, key: str) -> str:
    """`works`, or why not."""
    ring = KeyRing()
    with Store.open(database) as store:
        ring.replace(store.records(), development=True)
    try:
        return "works" if ring.authenticate([(b"x-api-key", key.encode())]) else "unknown"
    except Unauthenticated as error:
        return error.message


@pytest.fixture
def old(cli: Run) -> str:
    return cli("create", "alice", "--team", "research", "--limit", "tokens_per_day=5").stdout.strip()


def test_the_new_secret_belongs_to_the_same_key(cli: Run, shown: Any, old: str) -> None:
    before = shown("list")[0]
    new = cli("rotate", "alice").stdout.strip()
    (after,) = shown("list")
    assert new != old and new.split("-")[1] == old.split("-")[1] == after["id"]
    assert {**after, "former_until": None} == before


def test_both_secrets_work_in_the_time_of_grace(cli: Run, database: Path, old: str) -> None:
    new = cli("rotate", "alice").stdout.strip()
    assert [answer(database, key) for key in (old, new)] == ["works", "works"]


def test_the_grace_is_24_hours_unless_said_otherwise(shown: Any, database: Path, old: str) -> None:
    shown("rotate", "alice")
    with Store.open(database) as store:
        (record,) = store.records()
    assert record.former_until is not None and abs(record.former_until - time.time() - 86_400) < 120


def test_after_the_grace_the_old_secret_is_told_that_it_was_replaced(
    cli: Run, database: Path, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = cli("rotate", "alice", "--grace", "1h").stdout.strip()
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert "replaced" in answer(database, old)
    assert answer(database, new) == "works"


def test_without_grace_the_old_secret_ends_at_once(cli: Run, database: Path, old: str) -> None:
    done = cli("rotate", "alice", "--grace", "0")
    assert "does not work any more" in done.stderr
    assert "replaced" in answer(database, old)
    assert answer(database, done.stdout.strip()) == "works"


def test_revoking_ends_both_secrets(cli: Run, database: Path, old: str) -> None:
    new = cli("rotate", "alice").stdout.strip()
    cli("revoke", "alice")
    assert ["revoked" in answer(database, key) for key in (old, new)] == [True, True]


def test_rotating_again_within_the_grace_ends_the_oldest_secret_and_says_so(cli: Run, database: Path, old: str) -> None:
    second = cli("rotate", "alice").stdout.strip()
    done = cli("rotate", "alice")
    assert "has ended now" in done.stderr
    assert "not valid" in answer(database, old)
    assert [answer(database, key) for key in (second, done.stdout.strip())] == ["works", "works"]


def test_rotating_after_the_grace_does_not_speak_of_an_oldest_secret(cli: Run, old: str) -> None:
    cli("rotate", "alice", "--grace", "0")
    assert "has ended now" not in cli("rotate", "alice").stderr


def test_a_key_s_expiry_ends_both_secrets(cli: Run, database: Path, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("set", "alice", "--expires", "1h")
    new = cli("rotate", "alice").stdout.strip()
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert ["expired" in answer(database, key) for key in (old, new)] == [True, True]


def test_a_wrong_secret_of_a_rotated_key_is_just_wrong(cli: Run, database: Path, old: str) -> None:
    cli("rotate", "alice")
    assert "not valid" in answer(database, old[:-1] + ("b" if old.endswith("a") else "a"))


def test_a_revoked_key_cannot_be_rotated(cli: Run, old: str) -> None:
    cli("revoke", "alice")
    assert "is revoked: create a new one" in cli("rotate", old.split("-")[1], fails=True).stderr


def test_the_development_key_cannot_be_rotated(cli: Run, database: Path) -> None:
    with Store.open(database) as store, store.writing():
        store.create("development", development=True)
    assert "gateway's own" in cli("rotate", "development", fails=True).stderr


def test_the_new_secret_is_not_in_the_database(cli: Run, database: Path, old: str) -> None:
    new = cli("rotate", "alice").stdout.strip()
    assert new.split("-")[2].encode() not in database.read_bytes()


@pytest.mark.parametrize("grace", ["-1h", "1", "", "soon", "9999999999w"])
def test_a_grace_that_makes_no_sense_is_refused(cli: Run, database: Path, old: str, grace: str) -> None:
    cli("rotate", "alice", "--grace", grace, fails=True)
    assert answer(database, old) == "works"
