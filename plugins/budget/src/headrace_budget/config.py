"""What `[plugins.budget]` may say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.config import Secret, Strict
from headrace.limits import BUDGETS, Budget

Subject = Literal["key", "team", "model"]
PerMillion = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
"""Money for 1,000,000 tokens."""
Tokens = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]


class PriceConfig(Strict, frozen=True):
    """`[plugins.budget.prices."MODEL"]`: what a model costs, in `currency`; tokens per 1,000,000 of them."""

    input: PerMillion
    """Of the prompt, per 1,000,000 tokens."""
    output: PerMillion
    """Of the answer, per 1,000,000 tokens."""
    cached_input: PerMillion | None = None
    """Of that part of the prompt which the backend had in its cache; left out: as `input`."""
    request: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    """Of each request, whatever its length."""


class LimitConfig(Budget, frozen=True, omit_defaults=False):
    """`[[plugins.budget.limits]]`: one rule. Every number that is given is a budget of its own; a budget of 0 refuses
    everything."""

    per: tuple[Subject, ...] = ("key",)
    """Whose use is counted together: `["key"]` counts each caller, `["team", "model"]` each team's use of each model,
    `[]` everybody's. A caller without a team is not counted by rules per team."""
    keys: tuple[str, ...] = ()
    """Only callers with these ids; left out: all."""
    teams: tuple[str, ...] = ()
    """Only callers of these teams; left out: all."""
    models: tuple[str, ...] = ()
    """Only requests for these models; left out: all."""
    enforce: bool = True
    """Whether what does not fit is refused. If not, it is counted, and alerts are given."""
    alert_at: float | tuple[float, ...] = 0.8
    """The part of a budget, above 0 and up to 1, at which an alert is given; a list for several; `[]` for none."""

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError(f"limits nothing: give it one of {', '.join(BUDGETS)}")
        if not all(0 < part <= 1 for part in self.alerts):
            raise ValueError("alert_at: must be above 0 and not above 1")

    @property
    def alerts(self) -> tuple[float, ...]:
        """The parts at which alerts are given, rising."""
        return tuple(sorted(self.alert_at)) if isinstance(self.alert_at, tuple) else (self.alert_at,)

    @property
    def of_money(self) -> bool:
        return self.cost_per_day is not None or self.cost_per_month is not None


class BudgetConfig(Strict, frozen=True):
    """`[plugins.budget]`."""

    limits: tuple[LimitConfig, ...] = ()
    """The rules. A request must fit into all that apply to it, and into the budget of its key."""
    prices: dict[str, PriceConfig] = msgspec.field(default_factory=dict)
    """What models cost, by their names here; `"MODEL@TARGET"` is what one target of a model costs that costs otherwise.
    A target is named as its `[backends.NAME]` is, or, written out in the model's table, `MODEL-NUMBER` from 0."""
    unpriced: Literal["refuse", "free"] = "refuse"
    """What a model without a price is, where money is limited: `refuse` ends the start if it can be known then, and
    refuses the request if not; `free` counts it as nothing."""
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=16, pattern=r"^\S+$")] = "USD"
    """Of prices and budgets: how it is written, nothing is converted."""
    time_zone: str = "UTC"
    """Whose midnight begins days and months: a name like `Europe/Berlin`."""
    default_max_tokens: Tokens = 4096
    """Reserved for the answer to a request that does not say `max_tokens` itself; less if no more is left."""
    minimum_answer: Tokens = 16
    """Such a request is refused when what is left pays for fewer tokens of an answer than these."""
    cap_answers: bool = True
    """Whether such a request is sent on with as many `max_tokens` as were reserved. If not, its answer may take more
    than is left."""
    exact_prompts: bool = False
    """Whether the model's first backend is asked to count the tokens of each prompt (`/tokenize`, as vLLM has it),
    instead of estimating them. It costs a request to the backend; what it cannot count within half a second is
    estimated."""
    alert_url: Secret | None = None
    """Where alerts are posted as JSON, beside the log. Treated as a secret, for such URLs often are."""

    def __post_init__(self) -> None:
        for problem in (*self._rules(), *self._zone(), *self._url()):
            raise ValueError(problem)

    def _rules(self) -> Iterator[str]:
        seen = set()
        for rule in self.limits:
            if (which := (rule.per, rule.keys, rule.teams, rule.models)) in seen:
                yield f"limits: two rules are per {list(rule.per)} for the same callers: make them one"
            seen.add(which)

    def _zone(self) -> Iterator[str]:
        from .periods import zone

        try:
            zone(self.time_zone)
        except ValueError as error:
            yield f"time_zone: {error}"

    def _url(self) -> Iterator[str]:
        if self.alert_url is None:
            return
        try:
            url = urlsplit(self.alert_url.reveal())
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            usable = False
        if not usable:
            yield "alert_url: must be an address that begins with http:// or https://"
