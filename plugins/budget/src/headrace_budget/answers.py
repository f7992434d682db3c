"""What is said of budgets: to callers, to logs, to programs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from headrace.errors import Forbidden, RateLimited
from headrace.ledger import LARGEST
from headrace.limits import Standing

from .money import MILLION, written

if TYPE_CHECKING:
    from .periods import Calendar
    from .rules import Part

NO_RETRY = {"X-Should-Retry": "false"}
"""OpenAI's clients try again at once where they are not told this."""


class BudgetExceeded(RateLimited):
    """No more may be spent. The type is OpenAI's (https://platform.openai.com/docs/guides/error-codes)."""

    type, code = "insufficient_quota", "budget_exceeded"


class Words:
    """Puts budgets into words.

    Args:
        currency: how it is written.
        calendar: whose days and months they are.
    """

    def __init__(self, currency: str, calendar: Calendar) -> None:
        self._currency, self._calendar = currency, calendar

    def refusal(self, part: Part, amount: int, used: int) -> BudgetExceeded:
        """The error for a request that may take `amount` of a budget of which `used` is used."""
        budget, left = self.budget(part, addressed(part.subject)), part.most - used
        if amount > part.most > 0:
            text = f"This request may take {self.amount(part.unit, amount)}, more than the {budget}: ask for a smaller "
            return BudgetExceeded(f"{text}max_tokens, or send less.", headers=NO_RETRY)
        anew = f"begins anew at {self._calendar.moment(part.period.end):%Y-%m-%d %H:%M} ({self._calendar.zone})"
        if left <= 0:
            text = f"The {budget} is used up. It {anew}."
        else:
            text = f"This request may take {self.amount(part.unit, amount)}, and {self.amount(part.unit, left)} are "
            text += f"left of the {budget}. Ask for a smaller max_tokens, or wait: it {anew}."
        wait = max(1, math.ceil(part.period.end - self._calendar.clock()))
        return BudgetExceeded(text, headers={"Retry-After": str(wait), **NO_RETRY})

    def budget(self, part: Part, whom: str) -> str:
        """`budget of 5.00 USD a month of the team 'red'`."""
        return f"budget of {self.amount(part.unit, part.most)} a {part.span} of {whom}"

    def amount(self, unit: str, amount: int) -> str:
        """`5.00 USD`, or `7 tokens`."""
        if amount > LARGEST:
            return "more than can be counted"
        return f"{written(amount)} {self._currency}" if unit == "money" else f"{amount} tokens"

    def standing(self, part: Part, used: int) -> Standing:
        """How a budget stands, for programs."""
        money = part.unit == "money"
        return Standing(
            name=part.field,
            of=part.subject,
            unit=self._currency if money else "tokens",
            limit=_number(part, part.most),
            used=_number(part, used),
            remaining=_number(part, max(0, part.most - used)),
            resets_at=utc(part.period.end) if used else None,
        )


def utc(seconds: float) -> str:
    """A moment as programs read it: ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def unpriced(model: str) -> Forbidden:
    """The error where money is limited, and nobody knows what a model costs."""
    text = f"The model {model!r} has no price, and this key has a budget of money: the operator must set a price."
    return Forbidden(text, param="model", code="model_not_priced")


def _number(part: Part, amount: int) -> float:
    """Money in the currency's unit, or tokens."""
    return amount / MILLION if part.unit == "money" else amount


def addressed(subject: dict[str, str]) -> str:
    """Who is counted, said to the caller."""
    return _together({**subject, "key": ""}, "this key") if "key" in subject else named(subject)


def named(subject: dict[str, str]) -> str:
    """Who is counted, said to others."""
    return _together(subject, f"the key {subject.get('key')!r}")


def _together(subject: dict[str, str], key: str) -> str:
    words = [key if kind == "key" else f"the {kind} {name!r}" for kind, name in subject.items()]
    return " with ".join(words) or "all callers together"
