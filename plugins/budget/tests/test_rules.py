"""Which budgets apply to whom, and under which names they are counted."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import msgspec
import pytest

from headrace.exchange import Principal
from headrace.ledger import LARGEST
from headrace.limits import Budget
from headrace.models import Model
from headrace_budget import LimitConfig
from headrace_budget.money import Prices
from headrace_budget.periods import Calendar
from headrace_budget.rules import Applied, Rules

ADA = Principal(id="ada", team="red")
MODEL = Model("chat", (), msgspec.UNSET, "auto")  # type: ignore[arg-type]


@pytest.fixture
def rules(clock: Any) -> Any:
    def made(*limits: LimitConfig) -> Rules:
        return Rules(limits, Prices({}, free=False), Calendar(UTC, clock))

    return made


def keys(applied: Applied) -> list[str]:
    return [limit.key for limit in applied.limits]


def rule(**fields: Any) -> LimitConfig:
    return LimitConfig(**{"tokens_per_day": 5, **fields})


def test_names_tell_rules_callers_numbers_and_periods_apart_and_do_not_depend_on_the_files_order(rules: Any) -> None:
    one, other = rule(per=("team", "model")), rule(per=("key",), models=("chat",), tokens_per_month=7)
    found = keys(rules(one, other).applying(ADA, MODEL))
    assert len(set(found)) == 3
    assert sorted(found) == sorted(keys(rules(other, one).applying(ADA, MODEL)))
    assert "budget:team+model:red/chat:tokens_per_day:2030-05-17" in found


@pytest.mark.parametrize("field", ["tokens_per_day", "enforce", "alert_at"])
def test_a_rule_that_is_changed_goes_on_with_what_was_used(rules: Any, field: str) -> None:
    changed = {"tokens_per_day": 50, "enforce": False, "alert_at": 0.5}[field]
    before, after = (rules(each).applying(ADA, MODEL) for each in (rule(), rule(**{field: changed})))
    assert keys(before) == keys(after)


def test_names_with_slashes_and_colons_are_not_mixed_up(rules: Any) -> None:
    both = rules(rule(per=("team", "model")))
    one = both.applying(Principal(id="x", team="a"), msgspec.structs.replace(MODEL, name="b/c"))
    other = both.applying(Principal(id="x", team="a/b"), msgspec.structs.replace(MODEL, name="c"))
    assert keys(one) != keys(other)


def test_what_was_used_is_kept_beyond_the_periods_end(rules: Any) -> None:
    applied = rules(rule(cost_per_month=1)).applying(ADA, MODEL)
    for part, limit in zip(applied.parts, applied.limits, strict=True):
        assert limit.ends - part.period.end == {"day": 8, "month": 40}[part.span] * 86_400


def test_a_rule_that_is_not_enforced_is_counted_without_an_end(rules: Any) -> None:
    applied = rules(rule(enforce=False)).applying(ADA, MODEL)
    assert (applied.limits[0].most, applied.parts[0].most) == (LARGEST, 5)
    assert applied.amounts(10**30, 0)[0] < LARGEST


def test_what_applies_is_worked_out_once_a_day(rules: Any, clock: Any) -> None:
    prepared = rules(rule())
    first = prepared.applying(ADA, MODEL)
    assert prepared.applying(ADA, MODEL) is first
    clock.now += 86_400
    assert keys(prepared.applying(ADA, MODEL)) == ["budget:key:ada:tokens_per_day:2030-05-18"]


def test_a_key_whose_budget_has_changed_gets_the_new_one_at_once(rules: Any) -> None:
    prepared = rules()
    before = Principal(id="ada", budget=Budget(tokens_per_day=1))
    after = Principal(id="ada", budget=Budget(tokens_per_day=9))
    assert [prepared.applying(who, MODEL).limits[0].most for who in (before, after, before)] == [1, 9, 1]


@pytest.mark.parametrize(
    ("fields", "applies"),
    [
        ({"keys": ("ada",)}, True),
        ({"keys": ("bob",)}, False),
        ({"teams": ("red",)}, True),
        ({"teams": ("blue",)}, False),
        ({"models": ("chat",)}, True),
        ({"models": ("other",)}, False),
    ],
)
def test_a_rule_may_be_for_some_alone(rules: Any, fields: dict[str, Any], applies: bool) -> None:
    assert bool(rules(rule(**fields)).applying(ADA, MODEL).limits) is applies


def test_a_caller_without_a_team_is_not_counted_per_team(rules: Any) -> None:
    assert keys(rules(rule(per=("team",))).applying(Principal(id="carl"), MODEL)) == []
