"""`headrace usage`."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from headrace_usage.entry import Entry
from headrace_usage.output import csv_text
from headrace_usage.store import Store
from headrace_usage.times import DAY, HOUR, moment, span

CONFIG = """
[server]
state_dir = "{state_dir}"
[plugins.usage]
"""
Cli = Callable[..., Result]


@pytest.fixture
def now() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(state_dir=tmp_path))
    return path


@pytest.fixture
def cli(config: Path) -> Cli:
    """`headrace usage …` in this process; the exit status must be `status`."""

    def run(*arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(main, ["--config", str(config), "usage", *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == status, done.output
        return done

    return run


@pytest.fixture
def filled(config: Path, entry: Callable[..., Entry], now: int) -> None:
    """A minute ago: ten requests of two keys; 40 days ago: five."""
    with Store.open(config.parent / "usage.db", 5.0) as store:
        store.insert(
            [entry(n, at=now - 60_000, key=f"k{n % 2}", name=f"key {n % 2}", cost=n * 1000) for n in range(10)]
        )
        store.insert([entry(n, at=now - 40 * DAY, model="old", key="old") for n in range(100, 105)])


def test_a_report_is_a_table_with_a_total(cli: Cli, filled: None) -> None:
    head, first, second, total = cli("report", "--by", "key").stdout.splitlines()
    assert head.split()[:4] == ["key", "requests", "errors", "input"]
    assert first.split()[:5] == ["key", "1", "5", "0", "25"] and "0.025 USD" in first
    assert "0.02 USD" in second
    assert total.startswith("total") and "0.045 USD" in total


def test_a_report_is_csv(cli: Cli, filled: None) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("report", "--format", "csv", "--since", "60d", "--by", "model").stdout)))
    assert {row["model"]: (row["requests"], row["cost"]) for row in rows} == {
        "chat": ("10", "0.045"),
        "old": ("5", "0.000075"),
    }


def test_a_report_is_json(cli: Cli, filled: None, now: int) -> None:
    found = json.loads(cli("report", "--format", "json", "--key", "key 1", "--key", "k0", "--limit", "1").stdout)
    assert found["by"] == ["key", "model"] and found["has_more"] and found["until"] is None
    assert (found["data"][0]["key"], found["data"][0]["requests"], found["total"]["requests"]) == ("k1", 5, 10)
    assert moment(found["since"], now) <= now - 7 * DAY


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--since", "30s"), 0),
        (("--since", "60d", "--until", "30d"), 5),
        (("--model", "old", "--since", "60d"), 5),
        (("--team", "blue"), 0),
        (("--status", "200", "--endpoint", "chat", "--target", "gpu1", "--owner", "ada", "--role", "user"), 10),
    ],
)
def test_filters_narrow_a_report(cli: Cli, filled: None, options: tuple[str, ...], count: int) -> None:
    assert json.loads(cli("report", "--format", "json", *options).stdout)["total"]["requests"] == count


def test_what_was_left_out_and_what_has_no_price_is_said_beside_the_table(
    cli: Cli, config: Path, entry: Callable[..., Entry], now: int
) -> None:
    with Store.open(config.parent / "usage.db", 5.0) as store:
        store.insert([entry(n, at=now, model=f"m{n}", cost=None) for n in range(3)])
    said = cli("report", "--limit", "1").stderr
    assert "2 more rows" in said and "3 of the requests have no price" in said


def test_the_list_has_the_latest_last(cli: Cli, filled: None) -> None:
    lines = cli("list", "--limit", "3").stdout.splitlines()
    assert len(lines) == 4
    rows = json.loads(cli("list", "--since", "60d", "--format", "json").stdout)
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows) and len(rows) == 15


def test_prune_deletes_whole_days_and_says_how_much(cli: Cli, filled: None) -> None:
    assert json.loads(cli("prune", "--older-than", "30d", "--json").stdout)["deleted"] == 5
    assert "0 rows" in cli("prune", "--older-than", "30d").stderr
    assert json.loads(cli("report", "--since", "60d", "--format", "json").stdout)["total"]["requests"] == 15
    cli("prune", "--older-than", "30d", "--summaries")
    assert json.loads(cli("report", "--since", "60d", "--format", "json").stdout)["total"]["requests"] == 10


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--since", "yesterday"),
        ("report", "--by", "colour"),
        ("report", "--sort", "colour"),
        ("report", "--since", "2027-99-01"),
        ("report", "--until", "2001-01-01"),
        ("report", "--format", "xml"),
        ("list", "--limit", "0"),
        ("prune",),
        ("prune", "--older-than", "x"),
    ],
)
def test_bad_input_gets_one_clear_line_and_status_2(cli: Cli, filled: None, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, status=2)
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "Traceback" not in done.stderr


def test_without_a_ledger_it_says_so(cli: Cli, tmp_path: Path) -> None:
    assert "has no ledger yet" in cli("report", status=1).stderr
    assert not (tmp_path / "usage.db").exists()


def test_names_that_are_formulas_or_orders_to_a_terminal_are_defused(
    cli: Cli, config: Path, entry: Callable[..., Entry], now: int
) -> None:
    names = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\x1b[31mred", "a\u202eb", "plain")
    with Store.open(config.parent / "usage.db", 5.0) as store:
        store.insert([entry(n, at=now, key=f"k{n}", name=name, asked=name) for n, name in enumerate(names)])
    cells = [cell for row in csv.reader(io.StringIO(cli("report", "--format", "csv").stdout)) for cell in row]
    cells += [cell for row in csv.reader(io.StringIO(cli("list", "--format", "csv").stdout)) for cell in row]
    assert "'=1+1" in cells and "plain" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    for table in (cli("report").stdout, cli("list").stdout):
        assert "\x1b" not in table and "\u202e" not in table and "\t" not in table


def test_csv_of_nothing_is_empty() -> None:
    assert csv_text([]) == ""


def test_values_are_values_whatever_they_contain(cli: Cli, filled: None) -> None:
    for evil in ("' OR 1=1 --", "k0'); DROP TABLE requests; --", "%", ":since", "?"):
        assert json.loads(cli("report", "--format", "json", "--key", evil).stdout)["data"] == []
    assert json.loads(cli("report", "--format", "json").stdout)["total"]["requests"] == 10


def test_times_are_read_as_people_write_them() -> None:
    now = moment("2026-11-21T12:34:56Z", 0)
    assert now - moment("90m", now) == 90 * 60_000
    assert moment("2d", now) == moment("2026-11-19T12:00:00Z", 0)
    assert moment("2026-11-21", 0) % DAY == 0
    assert moment("2026-11-21T14:34:56+02:00", 0) == moment("2026-11-21T14:34:56 02:00", 0) == now
    assert span("2w") == 14 * DAY and span("1h") == HOUR
    for wrong in ("", "1", "d", "-1d", "0d", "99999999w", "1.5d", "٣d"):
        with pytest.raises(ValueError, match=r"is no|is not"):
            span(wrong)
