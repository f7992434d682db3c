"""What can be wrong with prices and rules, once the models are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.models import Model

    from .config import BudgetConfig, LimitConfig
    from .money import Prices


def problems(config: BudgetConfig, prices: Prices, models: Sequence[Model]) -> Iterator[tuple[str, str]]:
    """Where it stands, and what to do about it: names that are no model's, and models without a price.

    A misspelt name would be a price that is not asked for, or a budget that nobody keeps.
    """
    names = [model.name for model in models]
    known = f"(there are: {', '.join(names) or 'none'})"
    for name in prices.unknown(models):
        yield f"prices.{name!r}", f"is no model, and no MODEL@TARGET {known}"
    for rule in config.limits:
        for name in rule.models:
            if name not in names:
                yield "limits", f"models: there is no model {name!r} {known}"
    for model in models:
        if prices.of(model) is None and any(_of_money(rule, model) for rule in config.limits):
            table = f'[plugins.budget.prices."{model.name}"]'
            yield "prices", f'{model.name!r} has a budget of money and no price: add {table}, or set unpriced = "free"'


def _of_money(rule: LimitConfig, model: Model) -> bool:
    return rule.of_money and (not rule.models or model.name in rule.models)
