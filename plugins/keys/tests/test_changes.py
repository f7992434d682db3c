"""What a key is, said and changed on the command line, and what a request gets of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from headrace.exchange import Principal
from headrace.limits import Budget, RateLimits
from headrace_keys.changes import METADATA_BYTES, Changes
from headrace_keys.store import Store

Run = Callable[..., Result]

KEY = "hr-000000000000-" + "a" * 32
EVERYTHING = (
    *("--role", "admin", "--owner", "alice@example.org", "--team", "research", "--model", "gpt"),
    *("--endpoint", "chat", "--endpoint", "embeddings", "--limit", "tokens_per_day=100000"),
    *("--limit", "concurrent=3", "--budget", "cost_per_month=20.5", "--metadata", "ticket=42", "--expires", "30d"),
)


def test_create_takes_everything_that_a_key_has(shown: Any) -> None:
    made = shown("create", "laptop", *EVERYTHING)
    assert abs(datetime.fromisoformat(made.pop("expires")).timestamp() - time.time() - 30 * 86_400) < 120
    for name in ("id", "key", "created"):
        made.pop(name)
    assert made == {
        "name": "laptop",
        "role": "admin",
        "owner": "alice@example.org",
        "team": "research",
        "models": ["chat"],
        "endpoints": ["chat", "embeddings"],
        "limits": {"tokens_per_day": 100000, "concurrent": 3},
        "budget": {"cost_per_month": 20.5},
        "metadata": {"ticket": "42"},
        "revoked": None,
        "former_until": None,
        "state": "active",
    }


def test_a_request_carries_what_its_key_says(cli: Run, database: Path) -> None:
    cli("create", "laptop", *EVERYTHING)
    with Store.open(database) as store:
        (record,) = store.records()
    assert record.principal == Principal(
        id=record.id,
        name="laptop",
        role="admin",
        owner="alice@example.org",
        team="research",
        models=frozenset({"chat"}),
        endpoints=frozenset({"chat", "embeddings"}),
        limits=RateLimits(tokens_per_day=100_000, concurrent=3),
        budget=Budget(cost_per_month=20.5),
        metadata={"ticket": "42"},
    )


def test_an_unknown_endpoint_is_warned_about(cli: Run) -> None:
    done = cli("create", "laptop", "--endpoint", "chta")
    assert "no endpoint 'chta'" in done.stderr and "chat, completions, embeddings" in done.stderr


def test_limits_that_nothing_enforces_are_warned_about(cli: Run) -> None:
    done = cli("create", "laptop", "--limit", "concurrent=3", "--budget", "cost_per_day=1")
    assert "the plugin 'ratelimit' is not enabled" in done.stderr
    assert "the plugin 'budget' is not enabled" in done.stderr


def test_set_changes_what_is_given_and_nothing_else(shown: Any) -> None:
    before = shown("create", "laptop", *EVERYTHING)
    del before["key"]
    after = shown("set", "laptop", "--name", "desktop", "--team", "sales", "--role", "user", "--model", "x")
    assert after == {**before, "name": "desktop", "team": "sales", "role": "user", "models": ["x"]}


def test_limits_budgets_and_metadata_are_added_to_what_is_there(shown: Any) -> None:
    shown("create", "laptop", *EVERYTHING)
    after = shown(
        *("set", "laptop", "--limit", "requests_per_minute=60", "--limit", "tokens_per_day=7"),
        *("--budget", "tokens_per_month=9", "--metadata", "floor=3"),
    )
    assert after["limits"] == {"requests_per_minute": 60, "tokens_per_day": 7, "concurrent": 3}
    assert after["budget"] == {"cost_per_month": 20.5, "tokens_per_month": 9}
    assert after["metadata"] == {"ticket": "42", "floor": "3"}


def test_one_number_is_taken_away_by_giving_none(shown: Any) -> None:
    shown("create", "laptop", *EVERYTHING)
    after = shown("set", "laptop", "--limit", "concurrent=", "--budget", "cost_per_month=")
    assert (after["limits"], after["budget"]) == ({"tokens_per_day": 100000}, None)


def test_clear_takes_whole_fields_away(shown: Any) -> None:
    shown("create", "laptop", *EVERYTHING)
    names = ("owner", "team", "models", "endpoints", "limits", "budget", "metadata", "expires")
    after = shown("set", "laptop", *(part for name in names for part in ("--clear", name)))
    assert {name: after[name] for name in names} == {**dict.fromkeys(names), "metadata": {}}


def test_clear_and_a_new_value_replace_a_whole_field(shown: Any) -> None:
    shown("create", "laptop", *EVERYTHING)
    after = shown("set", "laptop", "--clear", "limits", "--limit", "concurrent=1")
    assert after["limits"] == {"concurrent": 1}


def test_an_expiry_may_be_a_date(shown: Any) -> None:
    shown("create", "laptop")
    assert shown("set", "laptop", "--expires", "2099-01-31")["expires"] == "2099-01-31T00:00:00Z"
    assert shown("set", "laptop", "--expires", "2099-01-31T18:00:00+02:00")["expires"] == "2099-01-31T16:00:00Z"


def test_set_says_what_has_changed(cli: Run) -> None:
    cli("create", "laptop", "--team", "sales")
    done = cli("set", "laptop", "--team", "sales", "--owner", "bob")
    assert "Changed owner of the key 'laptop'" in done.stderr


def test_a_revoked_key_cannot_be_changed(cli: Run) -> None:
    cli("create", "laptop")
    cli("revoke", "laptop")
    assert "revoked, for good" in cli("set", "laptop", "--team", "x", fails=True).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "tokens_per_week=1"], "tokens_per_week' is no limit"),
        (["--limit", "tokens_per_day"], "NAME=VALUE"),
        (["--limit", "tokens_per_day=many"], "is no number; write it like 100000"),
        (["--limit", "tokens_per_day=0"], "tokens_per_day: Expected `int` >= 1"),
        (["--limit", f"tokens_per_day={2**80}"], "tokens_per_day"),
        (["--budget", "cost_per_month=nan"], "cost_per_month"),
        (["--budget", "cost_per_month=-1"], "cost_per_month: Expected `float` >= 0"),
        (["--metadata", f"note={'x' * METADATA_BYTES}"], f"{METADATA_BYTES} are allowed"),
        (["--metadata", "=x"], "NAME=VALUE"),
        (["--owner", "a\x1b[2J"], "printable"),
        (["--team", " "], "printable"),
        (["--model", "x" * 300], "<= 256"),
        (["--model", "a\nb"], "printed"),
        (["--expires", "2099-02-30"], "is not a date"),
        (["--expires", "2020-01-31"], "is over already"),
        (["--owner", KEY], "whole key"),
        (["--metadata", f"key={KEY}"], "whole key"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    cli: Run, shown: Any, arguments: list[str], said: str
) -> None:
    cli("create", "laptop")
    before = shown("list")
    assert said in cli("set", "laptop", *arguments, fails=True).stderr
    cli("create", "another", *arguments, fails=True)
    assert shown("list") == before


def test_list_shows_limits_compactly_and_only_columns_with_something_in_them(cli: Run) -> None:
    cli("create", "plain")
    assert "limits" not in cli("list").stdout
    cli("create", "laptop", *EVERYTHING)
    shown = cli("list").stdout
    assert "tpd=100000 concurrent=3" in shown and "cost/month=20.5" in shown and "research" in shown


def test_list_filters_by_team(cli: Run, shown: Any) -> None:
    cli("create", "one", "--team", "research")
    cli("create", "two", "--team", "sales")
    cli("create", "three")
    assert [key["name"] for key in shown("list", "--team", "research")] == ["one"]
    assert "'nobody' has no keys" in cli("list", "--team", "nobody").stderr


def test_delete_forgets_ended_keys_only(cli: Run, shown: Any) -> None:
    cli("create", "laptop")
    assert "in force: revoke it first" in cli("delete", "laptop", fails=True).stderr
    cli("revoke", "laptop")
    cli("delete", "laptop")
    assert shown("list") == []


def test_prune_forgets_what_ended_long_ago(cli: Run, shown: Any, database: Path) -> None:
    ages = {"revoked long ago": 40, "revoked lately": 20}
    with Store.open(database) as store, store.writing():
        for name, days in ages.items():
            store.create(name, revoked=time.time() - days * 86_400)
        store.create("expired long ago", expires=time.time() - 40 * 86_400)
        store.create("expires later", expires=time.time() + 86_400)
        store.create("in force")
    assert {key["name"] for key in shown("prune")} == {"revoked long ago", "expired long ago"}
    assert "1 key deleted" in cli("prune", "--older-than", "10d").stderr
    assert [key["name"] for key in shown("list")] == ["expires later", "in force"]


def test_every_change_leaves_a_line_in_the_audit_log_without_a_secret(cli: Run, tmp_path: Path) -> None:
    key = cli("create", "laptop").stdout.strip()
    new = cli("rotate", "laptop").stdout.strip()
    cli("set", "laptop", "--team", "x")
    cli("revoke", "laptop")
    cli("delete", "laptop")
    file = tmp_path / "keys-audit.log"
    lines = file.read_text().splitlines()
    what = ["created key", "rotated (the secret before ends in 86400 s) key", "changed team of key"]
    what += ["revoked key", "deleted key"]
    assert all(each in line for each, line in zip(what, lines, strict=True))
    assert all(f"key {key.split('-')[1]} ('laptop')" in line and "command line, " in line for line in lines)
    assert key.split("-")[2] not in file.read_text() and new.split("-")[2] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_change_that_is_refused_leaves_no_line(cli: Run, tmp_path: Path) -> None:
    cli("revoke", "nobody", fails=True)
    assert (tmp_path / "keys-audit.log").read_text() == ""


def test_where_no_audit_line_can_be_written_nothing_is_changed(cli: Run, shown: Any, tmp_path: Path) -> None:
    (tmp_path / "keys-audit.log").mkdir()
    assert "keys-audit.log cannot be written" in cli("create", "laptop", fails=True).stderr
    assert shown("list") == []


def test_a_whole_key_in_place_of_an_id_is_refused_and_not_repeated(cli: Run) -> None:
    key = cli("create", "laptop").stdout.strip()
    for command in ("revoke", "rotate", "set", "delete"):
        done = cli(command, key, fails=True)
        assert "give its id alone" in done.stderr and key.split("-")[2] not in done.output


def test_metadata_that_json_cannot_say_are_refused() -> None:
    for value in (float("nan"), float("inf"), 2**64, "\ud800"):
        with pytest.raises(ValueError, match="metadata"):
            Changes(metadata={"x": value})


def test_metadata_are_flat() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"metadata": {"x": {"y": 1}}}, Changes)
