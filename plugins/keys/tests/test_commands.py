"""`headrace keys`, run as people run it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from headrace.gateway import Gateway
from headrace_keys.store import Store

KEY = re.compile(r"hr-[0-9a-z]{12}-[A-Za-z0-9]{32}\n")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def keys(config: Path) -> Run:
    """Run `headrace keys …`; `fails=True` expects the exit status to be other than 0."""

    def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from headrace.cli import main; main()"]
        done = subprocess.run(
            [*argv, "--config", str(config), "keys", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "COLUMNS": "40"},
        )
        assert (done.returncode != 0) == fails, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_create_prints_the_key_alone_on_stdout_and_the_hint_on_stderr(keys: Run) -> None:
    done = keys("create", "alice")
    assert KEY.fullmatch(done.stdout)
    assert "cannot be shown again" in done.stderr and done.stdout.strip() not in done.stderr


def test_create_with_json_prints_one_object(keys: Run) -> None:
    before = time.time()
    arguments = ("--role", "metrics", "--model", "chat", "--expires", "30d", "--json")
    made = json.loads(keys("create", "Prometheus, the scraper", *arguments).stdout)
    assert KEY.fullmatch(made["key"] + "\n") and made["id"] == made["key"].split("-")[1]
    assert (made["name"], made["role"], made["models"], made["state"]) == (
        "Prometheus, the scraper",
        "metrics",
        ["chat"],
        "active",
    )
    assert 0 <= datetime.fromisoformat(made["expires"]).timestamp() - before - 30 * 86_400 + 1 < 120


def test_an_alias_counts_as_its_model_and_an_unknown_model_is_warned_about(keys: Run) -> None:
    done = keys("create", "alice", "--model", "gpt", "--model", "chta", "--json")
    assert json.loads(done.stdout)["models"] == ["chat", "chta"]
    assert "no model 'chta'" in done.stderr and "chat, gpt" in done.stderr


def test_list_shows_everything_but_secrets(keys: Run) -> None:
    made = [keys("create", name).stdout.strip() for name in ("alice", "a name so long that no terminal shows it whole")]
    done, as_json = keys("list"), keys("list", "--json")
    for key in made:
        _, id, secret = key.split("-")
        assert id in done.stdout and id in as_json.stdout
        assert secret not in done.stdout + done.stderr + as_json.stdout + as_json.stderr
    assert "a name so long that no terminal shows it whole" in done.stdout, "a pipe gets whole lines"
    what = {"id", "name", "role", "owner", "team", "models", "endpoints", "limits", "budget", "metadata"}
    when = {"created", "expires", "revoked", "former_until", "state"}
    assert [set(entry) for entry in json.loads(as_json.stdout)] == [what | when] * 2


def test_list_without_keys_says_how_to_make_one(keys: Run) -> None:
    done = keys("list")
    assert done.stdout == "" and "headrace keys create" in done.stderr
    assert json.loads(keys("list", "--json").stdout) == []


def test_a_key_is_revoked_by_its_id_and_by_its_name(keys: Run) -> None:
    by_id = json.loads(keys("create", "alice", "--json").stdout)
    keys("create", "bob")
    assert "is revoked" in keys("revoke", by_id["id"]).stderr
    assert json.loads(keys("revoke", "bob", "--json").stdout)["state"] == "revoked"
    assert "already" in keys("revoke", "bob").stderr
    assert [entry["state"] for entry in json.loads(keys("list", "--json").stdout)] == ["revoked", "revoked"]


def test_revoke_refuses_what_it_does_not_know(keys: Run) -> None:
    assert "no key with the id or name 'nobody'" in keys("revoke", "nobody", fails=True).stderr


def test_revoke_refuses_a_name_that_several_keys_in_force_have(keys: Run) -> None:
    ids = [keys("create", "twin").stdout.split("-")[1] for _ in range(2)]
    refused = keys("revoke", "twin", fails=True)
    assert "2 keys" in refused.stderr and all(id in refused.stderr for id in ids)
    keys("revoke", ids[0])
    assert ids[1] in keys("revoke", "twin").stderr, "one is left, so the name is clear"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["", "--json"], "printable"),
        (["a\x1b[2J"], "printable"),
        (["x" * 101], "printable"),
        (["x", "--expires", "soon"], "for instance 30d"),
        (["x", "--expires", "0s"], "between one second"),
        (["x", "--expires", "9999999999w"], "between one second"),
        (["x", "--expires", "-1d"], "for instance 30d"),
        (["x", "--role", "root"], "user"),
    ],
)
def test_bad_arguments_are_clear_errors(keys: Run, arguments: list[str], said: str) -> None:
    done = keys("create", *arguments, fails=True)
    assert said in done.stderr and done.stdout == ""


def test_a_damaged_database_is_a_clear_error(keys: Run, database: Path) -> None:
    database.write_text("not a database" * 100)
    for arguments in (["create", "x"], ["list"], ["revoke", "x"]):
        assert "restore it from a backup" in keys(*arguments, fails=True).stderr


def test_a_development_key_that_is_switched_off_is_listed_as_off(keys: Run, database: Path) -> None:
    with Store.open(database) as store, store.writing():
        store.create("development", development=True)
    assert json.loads(keys("list", "--json").stdout)[0]["state"] == "off"


async def test_create_and_revoke_reach_a_running_gateway(
    keys: Run, config: Path, eventually: Any, let_in: Any, kept_out: Any
) -> None:
    gateway = Gateway.from_file(config).assemble()
    async with gateway.running():
        key = (await asyncio.to_thread(keys, "create", "alice")).stdout.strip()
        await eventually(lambda: let_in(gateway, key))
        await asyncio.to_thread(keys, "revoke", "alice")
        await eventually(lambda: kept_out(gateway, key))
