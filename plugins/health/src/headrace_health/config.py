"""What `[plugins.health]` may say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Positive, Strict

Kind = Literal["auto", "openai", "vllm", "ollama", "tgi", "llamacpp", "none"]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
"""Up to a day."""


class TargetConfig(Strict, frozen=True):
    """`[plugins.health.targets.NAME]`: what is different for one backend. What is left out is as for all of them."""

    kind: Kind = "auto"
    """How it is asked. `auto`: by the check that its provider brings, else by the list of its models; and if that list
    says that it is vLLM or llama.cpp, by `/health` as well."""
    interval: Positive | None = None
    """Seconds between two checks."""
    timeout: Positive | None = None
    """Seconds a check may take."""
    rise: Count | None = None
    """Checks (or requests) in a row that must go well before a backend that was down is up."""
    fall: Count | None = None
    """Checks in a row that must fail before a backend that was up is down."""
    start_period: Seconds | None = None
    """Seconds from the gateway's start in which a backend that refuses connections, and has not been up yet, counts as
    starting."""
    any_model: bool | None = None
    """Whether it answers whatever model it is asked for, though it lists only one. Left out: true for llama.cpp."""


class HealthConfig(Strict, frozen=True):
    """`[plugins.health]`."""

    interval: Positive = 10.0
    """Seconds between two checks of a backend."""
    fast_interval: Positive = 1.0
    """The same while its condition is changing, or it is starting. Not more often than this is a backend checked."""
    timeout: Positive = 5.0
    """Seconds a check may take."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.1
    """By which part each interval is made longer or shorter, at random, so that gateways do not ask in step."""
    rise: Count = 2
    """Checks (or requests) in a row that must go well before a backend that was down is up."""
    fall: Count = 3
    """Checks in a row that must fail before a backend that was up is down."""
    failures: Count = 5
    """Requests in a row that must fail before a backend is down without waiting for checks; the first of them has it
    checked at once."""
    start_period: Seconds = 0.0
    """Seconds from the gateway's start in which a backend that refuses connections, and has not been up yet, counts as
    starting."""
    targets: dict[str, TargetConfig] = msgspec.field(default_factory=dict)
    """What is different for single backends, by name; that of an unnamed target is as `headrace explain` shows it."""
    discover: tuple[str, ...] = ()
    """Backends whose every model clients can ask for, by the name it is listed under, without `[models.NAME]`."""
    require: Literal["public", "user", "metrics", "admin"] = "user"
    """Who may read `GET /v1/health/inference`."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one backend."""

    kind: Kind = "auto"
    interval: float = 10.0
    fast_interval: float = 1.0
    timeout: float = 5.0
    jitter: float = 0.1
    rise: int = 2
    fall: int = 3
    failures: int = 5
    start_period: float = 0.0
    any_model: bool | None = None


def rules_of(config: HealthConfig, name: str) -> Rules:
    """What holds for the backend of this name."""
    own = config.targets.get(name, TargetConfig())
    return Rules(
        kind=own.kind,
        interval=own.interval or config.interval,
        fast_interval=min(config.fast_interval, own.interval or config.interval),
        timeout=own.timeout or config.timeout,
        jitter=config.jitter,
        rise=own.rise or config.rise,
        fall=own.fall or config.fall,
        failures=config.failures,
        start_period=config.start_period if own.start_period is None else own.start_period,
        any_model=own.any_model,
    )
