"""Which budgets a request must fit into."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import msgspec

from headrace.exchange import ANONYMOUS
from headrace.ledger import LARGEST, Limit
from headrace.limits import BUDGETS, Budget, concerns, name_of

from .config import LimitConfig
from .money import Priced, Prices, millionths
from .periods import Calendar, Period, Span, Today

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Principal
    from headrace.models import Model

KEPT = 4096
"""Callers whose budgets are remembered."""
REPORTED: Mapping[Span, float] = {"day": 8 * 86400.0, "month": 40 * 86400.0}
"""Seconds for which what was used is kept after a period's end, for reports."""
OWN = "own"
"""The name of the rule that a key brings along."""
PREFIX = "budget:"
"""Of every key in the ledger."""


class Part(msgspec.Struct, frozen=True):
    """One number of a rule, for one subject, in the period that is now."""

    limit: Limit
    """As the ledger counts it: a budget that is not enforced has no end there."""
    field: str
    """The configuration's own: `cost_per_month`."""
    unit: Literal["money", "tokens"]
    span: Span
    period: Period
    most: int
    """Millionths, or tokens."""
    enforced: bool
    alerts: tuple[int, ...]
    """Rising: what must be used for an alert."""
    subject: dict[str, str]
    """Who is counted: empty for everybody."""
    per: tuple[str, ...]


class Applied(msgspec.Struct, frozen=True):
    """All that one request must fit into."""

    parts: tuple[Part, ...]
    limits: tuple[Limit, ...]
    priced: Priced | None
    """What the model costs; None if that is not known, or of no matter."""
    today: Today
    of_money: tuple[bool, ...]
    """Whether each of them counts money, or tokens."""
    alert_from: tuple[float, ...]
    """What must be used of each for its first alert."""
    all_enforced: bool
    alike: Literal["money", "tokens"] | None
    """What all of them count; None if some count money and some tokens."""
    closed: Part | None = None
    """A budget of nothing."""
    priceless: bool = False
    """Whether money is limited, and the price not known."""

    def amounts(self, tokens: int, money: int) -> list[int]:
        """What a request of so many tokens and so much money needs of each budget."""
        if self.alike is not None:
            amounts = [money if self.alike == "money" else tokens] * len(self.of_money)
        else:
            amounts = [money if each else tokens for each in self.of_money]
        if self.all_enforced:
            return amounts
        return [each if part.enforced else min(each, ROOM) for each, part in zip(amounts, self.parts, strict=True)]


ROOM = 2**40
"""Budgets that are not enforced must have room for any request: of each, they count no more than this."""


class Rules:
    """The configured rules, prepared; those of single callers come with them."""

    def __init__(self, rules: Sequence[LimitConfig], prices: Prices, calendar: Calendar) -> None:
        self._rules = [(rule, name_of(rule)) for rule in rules]
        self._prices, self._calendar = prices, calendar
        self._known: OrderedDict[tuple[str, str], tuple[Principal, Applied]] = OrderedDict()

    def of(self, exchange: Exchange) -> Applied | None:
        """Everything that applies to this request; None if nothing does."""
        who, model = exchange.principal or ANONYMOUS, exchange.model
        if model is None or not (self._rules or who.budget):
            return None
        return self.applying(who, model)

    def applying(self, who: Principal, model: Model) -> Applied:
        """Everything that applies today to requests of this caller for this model."""
        today = self._calendar.today()
        known = self._known.get((who.id, model.name))
        if known is not None and known[0] is who and known[1].today is today:
            return known[1]
        applied = self._applied(list(self.parts(who, model.name, today)), model, today)
        self._known[who.id, model.name] = who, applied
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return applied

    def _applied(self, parts: list[Part], model: Model, today: Today) -> Applied:
        closed = next((part for part in parts if part.enforced and not part.most), None)
        priced = self._prices.of(model)
        if priced is not None and priced.is_free:  # it passes even where more was spent than there was
            parts = [part for part in parts if part.unit == "tokens"]
        of_money = tuple(part.unit == "money" for part in parts)
        return Applied(
            parts=tuple(parts),
            limits=tuple(part.limit for part in parts),
            priced=priced if any(of_money) else None,
            today=today,
            of_money=of_money,
            alert_from=tuple(part.alerts[0] if part.alerts else math.inf for part in parts),
            all_enforced=all(part.enforced for part in parts),
            alike="money" if all(of_money) else None if any(of_money) else "tokens",
            closed=closed,
            priceless=any(of_money) and priced is None,
        )

    def parts(self, who: Principal, model: str, today: Today) -> Iterator[Part]:
        """Each budget of this caller that requests for this model count for."""
        of = {"key": who.id, "team": who.team or "", "model": model}
        for rule, name in self._rules:
            if concerns(rule, who, model):
                yield from _parts(rule, name, {each: of[each] for each in rule.per}, today)
        if who.budget is not None and any(getattr(who.budget, name) is not None for name in BUDGETS):
            own = LimitConfig(**{name: getattr(who.budget, name) for name in BUDGETS})
            yield from _parts(own, OWN, {"key": who.id}, today)


def _parts(rule: LimitConfig, name: str, subject: dict[str, str], today: Today) -> Iterator[Part]:
    whom = "/".join(quote(each, safe=" :@") for each in subject.values())
    for field, most in numbers_of(rule):
        span = span_of(field)
        period = today.of(span)
        key = f"{PREFIX}{name}:{whom}:{field}:{period.label}"
        yield Part(
            limit=Limit(key, "sum", most if rule.enforce else LARGEST, ends=period.end + REPORTED[span]),
            field=field,
            unit=unit_of(field),
            span=span,
            period=period,
            most=most,
            enforced=rule.enforce,
            alerts=tuple(max(1, round(part * most)) for part in rule.alerts) if most else (),
            subject=subject,
            per=rule.per,
        )


def numbers_of(rule: Budget) -> Iterator[tuple[str, int]]:
    """The budgets of a rule, as the ledger counts them: money in millionths."""
    for field in BUDGETS:
        most = getattr(rule, field)
        if most is not None:
            yield field, millionths(most) if unit_of(field) == "money" else min(most, LARGEST)


def unit_of(field: str) -> Literal["money", "tokens"]:
    return "money" if field.startswith("cost") else "tokens"


def span_of(field: str) -> Span:
    return "day" if field.endswith("day") else "month"
