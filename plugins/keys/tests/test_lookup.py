"""Whose key is this? Asked of the database alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.config import Secret
from headrace.errors import PluginError, Unauthenticated
from headrace_keys.lookup import whose
from headrace_keys.record import Record
from headrace_keys.store import Store


def make(database: Path, **fields: Any) -> tuple[Record, Secret]:
    with Store.open(database) as store, store.writing():
        return store.create("alice", **fields)


def test_a_key_in_force_leads_to_its_record(database: Path) -> None:
    make(database)
    record, key = make(database, team="research")
    assert whose(database, key) == record


def test_blanks_around_the_key_do_not_matter(database: Path) -> None:
    record, key = make(database)
    assert whose(database, Secret(f" {key.reveal()}\n")) == record


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("hr-000000000000-" + "a" * 32, "not valid"),
        ("hr-0", "not complete"),
        ("sk-x", "no key of"),
        ("\ud800", "no key"),
    ],
)
def test_another_key_is_refused_with_the_reason(database: Path, key: str, why: str) -> None:
    make(database)
    with pytest.raises(Unauthenticated, match=why):
        whose(database, Secret(key))


@pytest.mark.parametrize(("fields", "why"), [({"revoked": 1.0}, "revoked"), ({"expires": 1.0}, "expired")])
def test_a_key_that_has_ended_is_refused_with_the_reason(database: Path, fields: dict[str, Any], why: str) -> None:
    _, key = make(database, **fields)
    with pytest.raises(Unauthenticated, match=why):
        whose(database, key)


def test_a_development_key_counts_where_it_is_switched_on(database: Path) -> None:
    record, key = make(database, development=True)
    with pytest.raises(Unauthenticated):
        whose(database, key)
    assert whose(database, key, development=True) == record


def test_a_database_that_cannot_be_used_is_an_error(database: Path) -> None:
    database.mkdir()
    with pytest.raises(PluginError):
        whose(database, Secret("hr-0"))
