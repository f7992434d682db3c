"""`headrace budget`, and what callers are told of themselves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from headrace.exchange import Principal
from headrace.ledger import Limit
from headrace.ledger.local import LocalLedger

CONFIG = """
server = {{ state_dir = "{folder}" }}
backends.near = {{ provider = "openai", base_url = "http://127.0.0.1:9/v1" }}
models.chat = {{ targets = ["near", {{ provider = "openai", base_url = "http://127.0.0.1:9/v1" }}], aliases = ["c"] }}
models.other = {{ targets = ["near"] }}
plugins.openai = {{}}
[plugins.budget]
currency = "EUR"
unpriced = "free"
limits = [{{ per = ["team", "model"], cost_per_month = 5 }}, {{ per = [], tokens_per_day = 100 }}]
[plugins.budget.prices]
chat = {{ input = 0.15, output = 0.60, cached_input = 0.075 }}
"chat@chat-1" = {{ input = 1, output = 2, request = 0.01 }}
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    file = tmp_path / "headrace.toml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return lambda *arguments: CliRunner().invoke(main, ["--config", str(file), "budget", *arguments])


@pytest.fixture
def count(tmp_path: Path) -> Callable[[str, int], None]:
    """Writes into the ledger what a gateway would have."""

    def used(key: str, amount: int) -> None:
        ledger = LocalLedger(tmp_path / "ledger.mdb")
        ledger.open()
        ledger.take([Limit(f"budget:{key}", "sum", 2**53, ends=time.time() + 86_400)], [amount])
        ledger.close()

    return used


def listed(run: Run, *arguments: str) -> Any:
    done = run("list", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


MONTH, DAY = (time.strftime(form, time.gmtime()) for form in ("%Y-%m", "%Y-%m-%d"))


def test_what_was_used_is_listed_with_what_is_left(run: Run, count: Any) -> None:
    count(f"team+model:a%2Fb:x/chat:cost_per_month:{MONTH}", 4_500_000)
    (row,) = listed(run)
    assert row == {
        "rule": "team+model",
        "of": {"team": "a/b:x", "model": "chat"},
        "name": "cost_per_month",
        "period": "month",
        "when": MONTH,
        "unit": "EUR",
        "used": 4.5,
        "limit": 5.0,
        "remaining": 0.5,
    }


def test_a_budget_that_a_key_brought_along_is_listed_without_its_limit(run: Run, count: Any) -> None:
    count(f"own:ada:tokens_per_month:{MONTH}", 7)
    (row,) = listed(run)
    assert (row["of"], row["used"], row["unit"], row["limit"]) == ({"key": "ada"}, 7, "tokens", None)


def test_what_rules_have_counted_that_are_configured_no_more_is_listed_as_well(run: Run, count: Any) -> None:
    count(f"all#123456:x:cost_per_month:{MONTH}", 1)
    count(f"key+model#123456:ada/chat:tokens_per_day:{DAY}", 1)
    assert [(row["of"], row["limit"]) for row in listed(run)] == [({}, None), ({"key": "ada", "model": "chat"}, None)]


def test_a_subject_too_long_for_the_ledger_does_not_spoil_the_list(run: Run, count: Any) -> None:
    count(f"key:{'x' * 600}:cost_per_month:{MONTH}", 1)
    count(f"key:ada:cost_per_month:{MONTH}", 1)
    assert [row["of"] for row in listed(run)] == [{"key": "ada"}]


def test_days_and_months_can_be_listed_alone_and_earlier_ones_too(run: Run, count: Any) -> None:
    count(f"all::tokens_per_day:{DAY}", 7)
    count(f"key:ada:cost_per_month:{MONTH}", 7)
    count("key:ada:cost_per_month:2020-01", 7)
    chosen = [(), ("--period", "day"), ("--period", "month"), ("--past",)]
    found = [sorted(row["when"] for row in listed(run, *each)) for each in chosen]
    assert found == [[MONTH, DAY], [DAY], [MONTH], ["2020-01", MONTH, DAY]]


def test_people_get_a_table(run: Run, count: Any) -> None:
    count(f"all::tokens_per_day:{DAY}", 7)
    lines = run("list").stdout.splitlines()
    assert lines[1].split() == ["rule", "of", "when", "used", "limit", "remaining"]
    assert lines[2].split() == ["all", "everybody", DAY, "7", "tokens", "100", "tokens", "93", "tokens"]


def test_a_gateway_that_has_counted_nothing_says_so(run: Run) -> None:
    assert run("list").stderr == "Nothing has been used of any budget.\n"
    assert listed(run) == []


def test_what_a_request_costs_is_said_for_each_target(run: Run) -> None:
    done = run("cost", "c", "--input", "1000", "--output", "1000", "--cached", "400", "--json")
    assert json.loads(done.stdout) == [
        {"target": "near", "cost": 0.00072, "unit": "EUR"},
        {"target": "chat-1", "cost": 0.013, "unit": "EUR"},
    ]
    assert "0.00072 EUR" in run("cost", "chat", "--input", "1000", "--output", "1000", "--cached", "400").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cost", "chatt", "--input", "1", "--output", "1"), "does not exist"),
        (("cost", "chat", "--input", "1", "--output", "1", "--cached", "2"), "no more than --input"),
        (("cost", "chat", "--input", "1"), "--output"),
    ],
)
def test_what_cannot_be_reckoned_is_said(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code != 0 and message in done.output


async def test_callers_are_not_told_of_models_that_are_not_for_them(budgeted: Any) -> None:
    async with budgeted({"per": ["model"], "tokens_per_day": 9}) as gate:
        callers = [Principal(id="ada", models=models) for models in (None, frozenset({"test"}), frozenset())]
        told = [await gate.running.gateway.hooks.standing(each) for each in callers]
    assert [[each.of for each in budgets] for budgets in told] == [[{"model": "test"}], [{"model": "test"}], []]


async def test_callers_are_told_how_their_budgets_stand(budgeted: Any, clock: Any, flat: Any) -> None:
    limits = (
        {"per": ["team"], "cost_per_month": 5},
        {"per": ["key"], "cost_per_day": 9, "enforce": False},
        {"per": ["key"], "keys": ["bob"], "tokens_per_day": 9},
    )
    async with budgeted(*limits, clock=clock, prices=flat, time_zone="Europe/Berlin") as gate:
        await asyncio.gather(gate.ask("ada/red"), gate.ask("eve/red"), gate.ask("bob/blue"))
        told = await gate.client.get("/v1/usage", headers={"x-api-key": "ada/red"})
        fresh = await gate.client.get("/v1/usage", headers={"x-api-key": "poor"})
    assert told.json()["limits"] == [
        {
            "name": "cost_per_month",
            "of": {"team": "red"},
            "unit": "USD",
            "limit": 5.0,
            "used": 2.0,
            "remaining": 3.0,
            "resets_at": "2030-05-31T22:00:00Z",
        }
    ]
    ((own),) = fresh.json()["limits"]
    assert (own["of"], own["used"], own["resets_at"]) == ({"key": "poor"}, 0, None)
