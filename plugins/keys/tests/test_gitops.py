"""Keys in a TOML file: what is written is what is read."""

from __future__ import annotations

import difflib
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Unauthenticated
from headrace.limits import Budget, RateLimits
from headrace_keys.gitops import read, written
from headrace_keys.plan import _step, _with_times_of
from headrace_keys.record import Record
from headrace_keys.ring import KeyRing
from headrace_keys.store import Store

Run = Callable[..., Result]

NEW = """
[[keys]]
name = "bob"
team = "sales"
models = ["gpt"]
limits = { tokens_per_day = 5 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def records(database: Path) -> list[Record]:
    with Store.open(database) as store:
        return store.records()


def works(database: Path, key: str) -> bool:
    ring = KeyRing()
    ring.replace(records(database), development=False)
    try:
        return ring.authenticate([(b"x-api-key", key.encode())]) is not None
    except Unauthenticated:
        return False


def fill(database: Path) -> dict[str, str]:
    """Keys of every kind; returns the secrets."""
    now, keys = time.time(), {}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        'Zoë\'s "laptop"': {"role": "admin", "owner": "zoë", "team": "a\\b", "expires": now + 1000.123456789},
        "limited": {"models": ["a", "b/c"], "endpoints": [], "metadata": {"n": 1, "x": 1.5, "y": True, "z z": "é"}},
        "revoked": {"revoked": now - 5.5},
        "development": {"development": True},
    }
    with Store.open(database) as store, store.writing():
        for name, fields in kinds.items():
            keys[name] = store.create(name, **fields)[1].reveal()
    return keys


def test_an_export_holds_no_secret_and_is_for_its_owner_only(cli: Run, database: Path, file: Path) -> None:
    keys = fill(database)
    cli("export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not any(key.split("-")[2] in file.read_text() for key in keys.values())


def test_an_export_goes_to_standard_output_as_well(cli: Run, database: Path, file: Path) -> None:
    fill(database)
    cli("export", str(file))
    assert cli("export").stdout == file.read_text()


def test_the_development_key_is_not_exported(cli: Run, database: Path) -> None:
    fill(database)
    assert "development" not in cli("export").stdout


def test_an_import_of_the_export_changes_nothing(cli: Run, database: Path, file: Path) -> None:
    fill(database)
    cli("set", "limited", "--limit", "concurrent=1", "--budget", "cost_per_month=1")
    cli("rotate", "plain")
    before = records(database)
    cli("export", str(file))
    done = cli("import", str(file), "--prune")
    assert done.stdout == "" and "0 to create, 0 to change, 0 to revoke, 4 unchanged" in done.stderr
    assert records(database) == before


def test_another_gateway_accepts_the_keys_that_it_imports(cli: Run, database: Path, file: Path) -> None:
    keys = fill(database)
    keys["rotated"] = cli("rotate", "plain").stdout.strip()
    before = cli("export", str(file)) and cli("export").stdout
    database.unlink()
    cli("import", str(file))
    accepted = {name for name, key in keys.items() if works(database, key)}
    assert accepted == {"plain", "rotated", 'Zoë\'s "laptop"', "limited"}
    assert cli("export").stdout == before


texts = st.text(max_size=20)
words = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable() and text == text.strip())
scalars = st.one_of(
    texts, st.booleans(), st.integers(1 - 2**63, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
times = st.floats(1e9, 4e9)


@given(
    st.builds(
        Record,
        id=st.just("000000000000"),
        name=words,
        role=st.sampled_from(["user", "admin", "metrics"]),
        models=st.none() | st.lists(words, unique=True, max_size=3).map(tuple),
        endpoints=st.none() | st.lists(words, unique=True, max_size=3).map(tuple),
        salt=st.binary(min_size=16, max_size=16),
        digest=st.binary(min_size=32, max_size=32),
        created=times,
        expires=st.none() | times,
        owner=st.none() | words,
        team=st.none() | words,
        limits=st.none() | st.builds(RateLimits, tokens_per_day=st.integers(1, 2**53)),
        budget=st.none() | st.builds(Budget, cost_per_day=st.floats(0, 1e9)),
        metadata=st.dictionaries(words, scalars, max_size=4),
    )
)
def test_any_key_is_the_same_after_it_was_written_and_read(record: Record) -> None:
    (table,) = read(written([record], 0.0), "test")
    assert _step(table, record, 0.0).action == "unchanged"
    made = _step(table, None, 0.0).record
    assert _with_times_of(made, record) == record


def test_one_change_is_a_small_difference(cli: Run, database: Path) -> None:
    fill(database)
    before = cli("export").stdout.splitlines()
    cli("set", "plain", "--team", "x")
    cli("create", "last")
    after = cli("export").stdout.splitlines()
    difference = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert difference[0] == '+ team = "x"' and '+ name = "last"' in difference
    assert all(line.startswith("+") for line in difference) and len(difference) <= 10


def test_a_key_without_a_digest_is_made_and_printed_once(cli: Run, database: Path, file: Path) -> None:
    file.write_text(NEW)
    done = cli("import", str(file))
    key = done.stdout.splitlines()[1].split()[1]
    assert done.stdout.startswith("create    bob (") and works(database, key)
    (bob,) = records(database)
    assert (bob.team, bob.models, bob.limits and bob.limits.tokens_per_day) == ("sales", ("chat",), 5)
    assert "hr-" not in cli("import", str(file)).stdout
    assert records(database) == [bob]


def test_a_key_without_an_id_is_the_one_of_that_name(cli: Run, database: Path, file: Path) -> None:
    cli("create", "bob", "--team", "research")
    (before,) = records(database)
    file.write_text(NEW)
    assert cli("import", str(file)).stdout == f"change    bob ({before.id}): models, team, limits\n"
    (after,) = records(database)
    assert (after.id, after.digest, after.team) == (before.id, before.digest, "sales")


def test_what_the_file_leaves_out_is_taken_away(cli: Run, database: Path, file: Path) -> None:
    cli("create", "bob", "--owner", "x", "--role", "admin", "--metadata", "a=b", "--expires", "1d")
    file.write_text('[[keys]]\nname = "bob"\n')
    cli("import", str(file))
    (bob,) = records(database)
    assert (bob.owner, bob.role, bob.metadata, bob.expires) == (None, "user", {}, None)


def test_a_dry_run_shows_the_plan_and_does_nothing(cli: Run, database: Path, file: Path) -> None:
    fill(database)
    before = records(database)
    file.write_text(NEW)
    done = cli("import", str(file), "--dry-run", "--prune")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["create", "revoke", "revoke", "revoke"]
    assert "nothing was done" in done.stderr and "hr-" not in done.stdout
    assert records(database) == before


def test_prune_revokes_what_the_file_does_not_have_but_never_the_development_key(
    cli: Run, database: Path, file: Path
) -> None:
    keys = fill(database)
    file.write_text(NEW)
    cli("import", str(file))
    assert works(database, keys["plain"]), "without --prune it stays"
    cli("import", str(file), "--prune")
    in_force = [record.name for record in records(database) if record.revoked is None]
    assert in_force == ["development", "bob"]


def test_a_file_revokes_keys(cli: Run, database: Path, file: Path) -> None:
    keys = fill(database)
    lines = cli("export").stdout.replace('name = "plain"', 'name = "plain"\nrevoked = 2026-01-01T00:00:00Z')
    file.write_text(lines)
    assert "revoke    plain" in cli("import", str(file)).stdout
    assert not works(database, keys["plain"])


def test_a_revocation_is_final_whatever_the_file_says(cli: Run, database: Path, file: Path) -> None:
    keys = fill(database)
    cli("export", str(file))
    cli("revoke", "plain")
    done = cli("import", str(file))
    assert "is revoked here, which is final" in done.stderr and not works(database, keys["plain"])


def test_a_file_from_before_a_rotation_does_not_undo_it(cli: Run, database: Path, file: Path) -> None:
    fill(database)
    cli("export", str(file))
    new = cli("rotate", "plain", "--grace", "0").stdout.strip()
    assert "its secret stays" in cli("import", str(file)).stderr
    assert works(database, new)


def test_a_rotation_elsewhere_is_taken_over(cli: Run, database: Path, file: Path) -> None:
    keys = fill(database)
    copy = database.read_bytes()
    new = cli("rotate", "plain").stdout.strip()
    cli("export", str(file))
    database.write_bytes(copy)
    assert "change    plain" in cli("import", str(file)).stdout
    assert works(database, new) and works(database, keys["plain"])


def test_standard_input_is_read(cli: Run, database: Path) -> None:
    cli("import", "-", input=NEW)
    assert [record.name for record in records(database)] == ["bob"]


BAD = """
unknown = 1

[[keys]]
name = "a"
colour = "red"
[keys.limits]
tokens_per_day = 0

[[keys]]
team = "x"

[[keys]]
name = "b"
id = "not an id"

[[keys]]
name = "c"
id = "000000000000"
digest = "00"

[[keys]]
name = "twin"

[[keys]]
name = "twin"
id = "000000000001"

[[keys]]
name = "again"
id = "000000000001"

[[keys]]
name = "d"
expires = 2027-01-01T00:00:00
"""


def test_every_problem_of_a_file_is_told_at_once_and_nothing_is_done(cli: Run, database: Path, file: Path) -> None:
    file.write_text(NEW + BAD.replace("unknown = 1", ""))
    refused = cli("import", str(file), fails=True)
    for what in (
        *("[keys.1] colour: is not a known key", "[keys.1.limits] tokens_per_day: Expected `int` >= 1"),
        *("[keys.2] name: is required", "[keys.3] id: ", "[keys.4] digest: ", "[keys.5] name: stands in another"),
        *("[keys.7] id: is that of [keys.6]", "[keys.8] expires: "),
    ):
        assert f"{file}: {what}" in refused.stderr
    assert "so nothing is changed" in refused.stderr and refused.stdout == ""
    assert not database.exists() or records(database) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 1", "no array of tables"),
        ("", "is missing"),
        ("keys = [1]", "must be a table"),
        ("[[keys]", "is not valid TOML"),
        ("unknown = 1\nkeys = []", "unknown: is not a known key"),
    ],
)
def test_what_is_no_file_of_keys_is_refused(cli: Run, file: Path, text: str, said: str) -> None:
    file.write_text(text)
    assert said in cli("import", str(file), fails=True).stderr


def test_a_name_that_several_keys_have_is_a_problem(cli: Run, database: Path, file: Path) -> None:
    for _ in range(2):
        cli("create", "bob")
    before = records(database)
    file.write_text(NEW)
    assert "[keys.0]: 2 keys are named 'bob'" in cli("import", str(file), fails=True).stderr
    assert records(database) == before


def test_the_development_key_cannot_be_imported(cli: Run, database: Path, file: Path) -> None:
    fill(database)
    id = next(record.id for record in records(database) if record.development)
    file.write_text(f'[[keys]]\nname = "x"\nid = "{id}"\n')
    assert "development key" in cli("import", str(file), fails=True).stderr


def test_a_file_that_cannot_be_read_is_a_clear_error(cli: Run, file: Path) -> None:
    assert "cannot be read: No such file" in cli("import", str(file), fails=True).stderr
    file.write_bytes(b"\xff")
    assert "not valid UTF-8" in cli("import", str(file), fails=True).stderr


def test_an_import_with_json_tells_steps_and_new_keys(shown: Any, database: Path, file: Path) -> None:
    file.write_text(NEW)
    (step,) = shown("import", str(file))
    assert (step["action"], step["name"]) == ("create", "bob") and works(database, step["key"])
    assert [each["action"] for each in shown("import", str(file))] == ["unchanged"]


def test_an_import_is_in_the_audit_log(cli: Run, file: Path, tmp_path: Path) -> None:
    file.write_text(NEW)
    cli("import", str(file))
    assert "imported, created key" in (tmp_path / "keys-audit.log").read_text()
