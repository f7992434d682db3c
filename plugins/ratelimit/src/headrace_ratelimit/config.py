"""What `[plugins.ratelimit]` may say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Strict

Subject = Literal["key", "team", "model", "address"]
SPANS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
"""Seconds of the windows that limits are given for."""


class LimitConfig(Strict, frozen=True):
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

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in LIMITS):
            raise ValueError(f"limits nothing: give it one of {', '.join(LIMITS)}")


class RatelimitConfig(Strict, frozen=True):
    """`[plugins.ratelimit]`."""

    limits: tuple[LimitConfig, ...] = ()
    """The rules. A request must fit into all that apply to it."""
    default_max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Reserved for the answer to a request that does not say `max_tokens` itself."""


LIMITS = tuple(
    name
    for name in LimitConfig.__struct_fields__
    if name == "concurrent" or name.startswith(("requests_per_", "tokens_per_"))
)
