"""What one caller may use: the names of limits, as configurations, keys and tokens of identity providers write them.

Core says the words; the plugins `ratelimit` and `budget` see to it that they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

from .config import Strict

if TYPE_CHECKING:
    from .exchange import Principal

Money = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""In the currency of the price table, whatever that is."""


Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class RateLimits(Strict, frozen=True, omit_defaults=True):
    """How much in a time that slides. Every number that is given is a limit of its own."""

    requests_per_minute: Count | None = None
    """Requests in any 60 seconds."""
    requests_per_hour: Count | None = None
    """Requests in any hour."""
    requests_per_day: Count | None = None
    """Requests in any 24 hours."""
    tokens_per_minute: Count | None = None
    """Tokens, asked and answered, in any 60 seconds."""
    tokens_per_hour: Count | None = None
    """Tokens in any hour."""
    tokens_per_day: Count | None = None
    """Tokens in any 24 hours."""
    concurrent: Count | None = None
    """Requests that are open at the same time; a stream is open until its last byte."""


class Budget(Strict, frozen=True, omit_defaults=True):
    """How much in a day or a month of the calendar. Every number that is given is a limit of its own."""

    cost_per_day: Money | None = None
    """Money from midnight to midnight."""
    cost_per_month: Money | None = None
    """Money from the first of the month on."""
    tokens_per_day: Count | None = None
    """Tokens, asked and answered, from midnight to midnight."""
    tokens_per_month: Count | None = None
    """Tokens from the first of the month on."""


class Wall(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody may exceed, whatever else is limited: a server in front refuses a flood without asking the core.

    There is none for everybody together: whoever has no key could use it up for all who have one.
    """

    per: Literal["key", "address"]
    requests_per_minute: int | None = None
    """Requests to endpoints in any 60 seconds."""
    concurrent: int | None = None
    """Such requests that are open at the same time."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How one limit stands, as its callers are told."""

    name: str
    """The configuration's own: `tokens_per_minute`."""
    of: dict[str, str]
    """Whose use is counted together: `{"team": "red"}`; empty if everybody's is."""
    unit: str
    """What is counted: `requests`, `tokens`, `concurrent`, or a currency."""
    limit: float
    used: float
    remaining: float
    resets_at: str | None
    """When nothing of it is used if nobody asks: ISO 8601, UTC. None if that is not known, or nothing is used."""


def moment(seconds_from_now: float) -> str | None:
    """ISO 8601 in UTC, to the second, for `Standing.resets_at`; None if it is now, or never."""
    if seconds_from_now <= 0 or not math.isfinite(seconds_from_now):
        return None
    then = datetime.now(UTC) + timedelta(seconds=math.ceil(seconds_from_now))
    return then.isoformat(timespec="seconds").replace("+00:00", "Z")


class Selection(Protocol):
    """For whom a rule is, and whose use it counts together: the tables of several plugins say it with these keys."""

    @property
    def per(self) -> Sequence[str]: ...
    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def teams(self) -> Sequence[str]: ...
    @property
    def models(self) -> Sequence[str]: ...


def concerns(rule: Selection, who: Principal, model: str) -> bool:
    """Whether a rule is for this caller's requests for this model. Nobody without a team is counted by team."""
    return not (
        (rule.keys and who.id not in rule.keys)
        or (rule.teams and who.team not in rule.teams)
        or (rule.models and model not in rule.models)
        or ("team" in rule.per and who.team is None)
    )


def name_of(rule: Selection) -> str:
    """What a rule's counts are called: the same at every start and in every gateway, wherever it stands in the file."""
    only = (rule.keys, rule.teams, rule.models)
    digest = "#" + blake2b(msgspec.json.encode(only), digest_size=6).hexdigest() if any(only) else ""
    return ("+".join(rule.per) or EVERYBODY) + digest


EVERYBODY = "all"
"""The name of a rule that counts everybody together."""
RATES = RateLimits.__struct_fields__
BUDGETS = Budget.__struct_fields__
