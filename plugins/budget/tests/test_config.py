"""What a configuration may say, and what is found wrong with it before anybody asks."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError, PluginError
from headrace.gateway import Gateway
from headrace.settings import decode_plugin, parse
from headrace_budget import BudgetConfig, LimitConfig, Plugin

MODELS = {
    "small": {"targets": ["near"]},
    "large": {"targets": ["near", {"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}], "aliases": ["big"]},
}
PRICE = {"input": 1, "output": 2}
MONEY = {"cost_per_month": 5}


def assembled(**table: Any) -> Gateway:
    document = {
        "backends": {"near": {"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}},
        "models": MODELS,
        "plugins": {"openai": {}, "budget": table},
    }
    return Gateway(parse(document, source="test"), "test", {"budget": Plugin}).assemble()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"limits": [{"per": ["key"]}]}, "limits nothing"),
        ({"limits": [{"cost_per_day": -1}]}, "cost_per_day"),
        ({"limits": [{"tokens_per_day": 0}]}, "tokens_per_day"),
        ({"limits": [{"cost_per_day": 1, "alert_at": 80}]}, "alert_at"),
        ({"limits": [{"cost_per_day": 1, "alert_at": [0.5, 0]}]}, "alert_at"),
        ({"limits": [{"cost_per_day": 1, "per": ["address"]}]}, "per"),
        ({"limits": [{"cost_per_day": 1}, {"tokens_per_day": 1}]}, "make them one"),
        ({"time_zone": "Europe/Entenhausen"}, "time_zone: there is no time zone 'Europe/Entenhausen'"),
        ({"alert_url": "ftp://example.com/"}, "alert_url"),
        ({"alert_url": "https://"}, "alert_url"),
        ({"alert_url": "http://[::1"}, "alert_url"),
        ({"prices": {"m": {"input": 1}}}, "output"),
        ({"prices": {"m": {"input": -1, "output": 1}}}, "input"),
        ({"prices": {"m": {"input": 1, "output": 1, "completion": 1}}}, "completion"),
        ({"currency": ""}, "currency"),
        ({"unpriced": "ignore"}, "unpriced"),
    ],
)
def test_what_makes_no_sense_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode_plugin("budget", table, BudgetConfig, "test")


def test_an_address_that_is_refused_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        decode_plugin("budget", {"alert_url": "htp://secret"}, BudgetConfig, "test")
    assert "secret" not in str(refused.value)


def test_all_models_without_a_price_are_named_where_money_is_limited() -> None:
    with pytest.raises(PluginError) as refused:
        assembled(limits=[MONEY])
    assert all(f'[plugins.budget.prices."{name}"]' in str(refused.value) for name in MODELS)


def test_a_model_one_of_whose_targets_has_no_price_is_named() -> None:
    with pytest.raises(PluginError, match="'large' has a budget of money and no price"):
        assembled(limits=[MONEY], prices={"small": PRICE, "large@near": PRICE})
    assembled(limits=[MONEY], prices={"small": PRICE, "large@near": PRICE, "large@large-1": PRICE})


@pytest.mark.parametrize(
    "table",
    [
        {"limits": [{"tokens_per_month": 5}]},
        {"limits": [MONEY], "unpriced": "free"},
        {"limits": [{**MONEY, "models": ["small"]}], "prices": {"small": PRICE}},
        {"limits": [MONEY], "prices": {"small": PRICE, "large": PRICE}},
        {"prices": {"small": PRICE}},
        {},
    ],
)
def test_a_price_is_not_asked_for_where_it_is_of_no_matter(table: dict[str, Any]) -> None:
    assert assembled(**table).plugins["budget"]


@pytest.mark.parametrize("name", ["smal", "large@far", "big"])
def test_a_price_of_what_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match=f"{name}.*is no model.*small, large"):
        assembled(prices={name: PRICE})


def test_a_rule_for_a_model_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PluginError, match="there is no model 'lage'"):
        assembled(limits=[{"tokens_per_day": 5, "models": ["lage"]}])


def test_one_part_for_an_alert_is_as_good_as_a_list() -> None:
    one, several = LimitConfig(cost_per_day=1, alert_at=0.5), LimitConfig(cost_per_day=1, alert_at=(1, 0.5))
    assert (one.alerts, several.alerts) == ((0.5,), (0.5, 1))
