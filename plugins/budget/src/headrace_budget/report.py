"""What has been used of budgets, read from the names under which it is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from headrace.limits import BUDGETS, EVERYBODY, name_of

from .money import MILLION
from .rules import OWN, PREFIX, numbers_of, span_of, unit_of

if TYPE_CHECKING:
    from . import Plugin


def rows(plugin: Plugin, counted: Iterable[tuple[str, int]], past: bool) -> Iterator[dict[str, Any]]:
    """One row for each budget of which something was used; with `past`, of earlier periods as well.

    The limit of a key's own budget is not known here, nor that of a rule that is configured no more: it is None.
    """
    limits = {(name_of(rule), field): most for rule in plugin.config.limits for field, most in numbers_of(rule)}
    per = {name_of(rule): rule.per for rule in plugin.config.limits} | {OWN: ("key",)}
    today = plugin.calendar.today()
    for key, used in counted:
        name, whom, field, label = _parts(key)
        if field not in BUDGETS:  # too long to be kept as it was
            continue
        span, most = span_of(field), limits.get((name, field))
        if past or label == today.of(span).label:
            kinds = per.get(name, _kinds(name))
            yield {
                "rule": name,
                "of": dict(zip(kinds, map(unquote, whom.split("/")), strict=False)),
                "name": field,
                "period": span,
                "when": label,
                "unit": "tokens" if unit_of(field) == "tokens" else plugin.config.currency,
                "used": _number(field, used),
                "limit": None if most is None else _number(field, most),
                "remaining": None if most is None else _number(field, max(0, most - used)),
            }


def _kinds(name: str) -> tuple[str, ...]:
    """What a rule that is configured no more has counted together."""
    word = name.partition("#")[0]
    return () if word == EVERYBODY else tuple(word.split("+"))


def _parts(key: str) -> tuple[str, str, str, str]:
    """Rule, subject, the configuration's name of the number, period."""
    name, _, rest = key.removeprefix(PREFIX).partition(":")
    whom, field, label = ("::" + rest).rsplit(":", 2)
    return name, whom.removeprefix("::"), field, label


def _number(field: str, amount: int) -> float:
    return amount / MILLION if unit_of(field) == "money" else amount
