"""What requests cost: exactly, and never less than they do."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.models import Model
from headrace_budget import PriceConfig
from headrace_budget.money import FREE, MILLION, Priced, Prices, Rate, millionths, rate, written

prices = st.builds(
    PriceConfig,
    input=st.floats(0, 1e6),
    output=st.floats(0, 1e6),
    cached_input=st.none() | st.floats(0, 1e6),
    request=st.floats(0, 1e3),
)
usages = st.tuples(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))


def exactly(price: PriceConfig, prompt: int, cached: int, answer: int) -> Fraction:
    """What it costs, in the currency's unit."""
    cached = min(cached, prompt)
    kept = price.input if price.cached_input is None else price.cached_input
    tokens = (prompt - cached) * Fraction(price.input) + cached * Fraction(kept) + answer * Fraction(price.output)
    return tokens / 10**6 + Fraction(price.request)


@given(price=prices, requests=st.lists(usages, max_size=20))
def test_rounding_never_counts_less_than_was_spent_nor_a_millionth_more_for_each_request(
    price: PriceConfig, requests: list[tuple[int, int, int]]
) -> None:
    counted = sum(rate(price).cost(*usage) for usage in requests)
    spent = sum((exactly(price, *usage) for usage in requests), Fraction(0)) * MILLION
    small = sum(sum(usage) + 1 for usage in requests) * Fraction(1, 10**5)  # prices of more digits are rounded up, too
    assert spent * (1 - Fraction(1, 10**12)) <= counted <= spent + len(requests) + small


@given(price=prices, usage=usages)
def test_no_usage_costs_more_than_what_is_reserved_for_it(price: PriceConfig, usage: tuple[int, int, int]) -> None:
    prompt, _, answer = usage
    assert rate(price).cost(*usage) <= rate(price).at_most(prompt, answer)


@given(price=prices, money=st.integers(0, 10**12), prompt=st.integers(0, 10**6))
def test_an_answer_that_fits_costs_what_there_is_and_one_token_more_would_cost_more(
    price: PriceConfig, money: int, prompt: int
) -> None:
    its = rate(price)
    tokens = its.answer_for(money, prompt)
    if tokens >= 0:
        assert its.at_most(prompt, tokens) <= money or not its.output
    if its.output:
        assert its.at_most(prompt, max(0, tokens + 1)) > money


@pytest.mark.parametrize(
    ("price", "usage", "cost"),
    [
        (PriceConfig(input=0.15, output=0.60), (1_000_000, 0, 1_000_000), 750_000),
        (PriceConfig(input=0.15, output=0.60, cached_input=0.075), (1000, 400, 0), 120),
        (PriceConfig(input=0.1, output=0), (30, 0, 0), 3),
        (PriceConfig(input=0.15, output=0.60), (1, 0, 0), 1),
        (PriceConfig(input=0, output=0, request=0.01), (99, 0, 99), 10_000),
    ],
)
def test_prices_are_per_million_tokens(price: PriceConfig, usage: tuple[int, int, int], cost: int) -> None:
    assert rate(price).cost(*usage) == cost


@pytest.mark.parametrize(
    ("amount", "whole"), [(0.1, 100_000), (5, 5_000_000), (0.29, 290_000), (1e9, 10**15), (1e-7, 0)]
)
def test_a_budget_is_its_millionths_and_no_more(amount: float, whole: int) -> None:
    assert millionths(amount) == whole


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00"), (5_000_000, "5.00"), (12_340_000, "12.34"), (315, "0.000315"), (1_500, "0.0015")]
)
def test_money_is_written_with_the_digits_it_has(amount: int, text: str) -> None:
    assert written(amount) == text


def model(*targets: str) -> Model:
    return Model("m", tuple(msgspec.convert({"name": name}, Named) for name in targets), None, "auto")  # type: ignore


class Named(msgspec.Struct):
    name: str


def test_a_target_may_cost_otherwise_and_the_dearest_is_reserved() -> None:
    known = Prices({"m": PriceConfig(input=1, output=2), "m@far": PriceConfig(input=3, output=1)}, free=False)
    priced = known.of(model("near", "far"))
    assert priced is not None
    assert [priced.cost(target, 10, 0, 10) for target in ("near", "far", "unheard of")] == [30, 40, 40]
    assert (priced.at_most(10, 10), priced.at_most(1, 10)) == (40, 21)
    assert priced.answer_for(40, 10) == 10


def test_a_model_with_a_target_that_has_no_price_has_none() -> None:
    only_far = {"m@far": PriceConfig(input=3, output=1)}
    assert Prices(only_far, free=False).of(model("near", "far")) is None
    assert Prices(only_far, free=True).of(model("near")) == Priced((FREE,), {"near": FREE})


def test_a_model_that_falls_back_on_another_may_cost_what_that_one_costs() -> None:
    chat = msgspec.structs.replace(model("near"), fallbacks=("large",))
    large = msgspec.structs.replace(model("far"), name="large")
    listed = {"m": PriceConfig(input=1, output=1), "large": PriceConfig(input=5, output=5)}
    priced = Prices(listed, False, {"large": large}.__getitem__).of(chat)
    assert priced is not None
    assert [priced.cost(target, 10, 0, 0) for target in ("near", "far")] == [10, 50]
    assert priced.at_most(10, 0) == 50
    assert Prices({"m": listed["m"]}, False, {"large": large}.__getitem__).of(chat) is None


def test_names_that_are_no_models_are_found() -> None:
    listed = {name: PriceConfig(input=1, output=1) for name in ("m", "m@far", "m@moon", "n")}
    assert Prices(listed, free=False).unknown([model("far")]) == ["m@moon", "n"]


def test_an_input_that_costs_more_from_a_cache_is_reserved_at_that() -> None:
    assert Rate(input=MILLION, cached=2 * MILLION).at_most(5, 0) == 10
