"""What requests cost."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from headrace_usage import PriceConfig
from headrace_usage.money import Prices, rate, written

MONEY = st.decimals(0, 1000, places=6).map(float)
TOKENS = st.integers(0, 10**7)


@given(MONEY, MONEY, st.none() | MONEY, MONEY, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_exact_and_rounded_up_once(
    input: float, output: float, cached: float | None, request: float, prompt: int, kept: int, answer: int
) -> None:
    price = PriceConfig(input=input, output=output, cached_input=cached, request=request)
    kept_price, kept = Decimal(str(input if cached is None else cached)), min(kept, prompt)
    exact = (prompt - kept) * Decimal(str(input)) + kept * kept_price + answer * Decimal(str(output))
    exact += Decimal(str(request)) * 1_000_000
    assert 0 <= rate(price).cost(prompt, kept, answer) - exact < 1


def test_a_target_s_own_price_comes_before_its_model_s() -> None:
    prices = Prices({"a": PriceConfig(input=1, output=1), "a@cloud": PriceConfig(input=5, output=5)})
    costs = [found and found.cost(1_000_000, 0, 0) for found in (prices.of("a", "gpu"), prices.of("a", "cloud"))]
    assert costs == [1_000_000, 5_000_000]
    assert prices.of("b", "gpu") is None


def test_a_price_of_nothing_is_a_price() -> None:
    prices = Prices({"a@cloud": PriceConfig(input=0, output=0), "a": PriceConfig(input=1, output=1)})
    found = prices.of("a", "cloud")
    assert found is not None and found.cost(10**6, 0, 10**6) == 0


def test_money_is_written_with_two_digits_or_as_many_as_it_has() -> None:
    assert [written(each) for each in (0, 10_000, 1, 1_500_000, 123_456_789)] == [
        *("0.00", "0.01", "0.000001", "1.50", "123.456789"),
    ]
