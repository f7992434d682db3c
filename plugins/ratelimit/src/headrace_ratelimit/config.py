"""What `[plugins.ratelimit]` may say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.config import Strict
from headrace.limits import RATES, RateLimits

Subject = Literal["key", "team", "model", "address"]
SPANS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
"""Seconds of the windows that limits are given for."""


class LimitConfig(RateLimits, frozen=True, omit_defaults=False):
    """`[[plugins.ratelimit.limits]]`: one rule. Every number that is given is a limit of its own."""

    per: tuple[Subject, ...] = ("key",)
    """Whose use is counted together: `["key"]` counts each caller, `["team", "model"]` each team's use of each model,
    `[]` everybody's. A caller without a team is not counted by rules per team."""
    keys: tuple[str, ...] = ()
    """Only callers with these ids; left out: all."""
    teams: tuple[str, ...] = ()
    """Only callers of these teams; left out: all."""
    models: tuple[str, ...] = ()
    """Only requests for these models; left out: all."""

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in RATES):
            raise ValueError(f"limits nothing: give it one of {', '.join(RATES)}")


class RatelimitConfig(Strict, frozen=True):
    """`[plugins.ratelimit]`."""

    limits: tuple[LimitConfig, ...] = ()
    """The rules. A request must fit into all that apply to it, and into those of its key."""
    default_max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 4096
    """Reserved for the answer to a request that does not say `max_tokens` itself, where tokens are limited; less if a
    limit is smaller than that."""
    minimum_answer: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Such a request is refused when less than this is left for each of its answers."""
    cap_answers: bool = True
    """Whether such a request is sent on with that many `max_tokens`. If not, its answer may take more than was
    reserved."""

    exact_prompts: bool = False
    """Whether the model's first backend is asked to count the tokens of each prompt (`/tokenize`, as vLLM has it) where
    tokens are limited, instead of estimating them. It costs a request to the backend; what it cannot count within half
    a second is estimated."""
    wall: bool = True
    """Whether nginx refuses floods by itself, by the same numbers, without asking the core: what is beyond twice a rule
    per key or per address. All other rules are the core's alone."""

    def __post_init__(self) -> None:
        seen = set()
        for rule in self.limits:
            if (which := (rule.per, rule.keys, rule.teams, rule.models)) in seen:
                raise ValueError(f"limits: two rules are per {list(rule.per)} for the same callers: make them one")
            seen.add(which)
