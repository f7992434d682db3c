"""What `[plugins.breaker]` may say."""

from __future__ import annotations

from typing import Annotated

import msgspec

from headrace.config import Count, Positive, Strict

Some = Annotated[float, msgspec.Meta(ge=0, le=3600)]
"""Seconds, up to an hour."""


class BreakerConfig(Strict, frozen=True):
    """`[plugins.breaker]`."""

    failures: Annotated[int, msgspec.Meta(ge=0)] = 5
    """So many requests that a backend fails one after the other open its circuit; 0: it is not opened by this."""
    error_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """The part of the requests of the last `window` seconds, if it failed so many of them: 0 to 1; 0: it is not
    opened by this."""
    minimum_requests: Count = 20
    """Requests within `window` from which on the rate says anything."""
    window: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    """Seconds that the rate looks back."""
    open_for: Positive = 5.0
    """Seconds until the backend is tried again, at most; doubled each time that it fails again, up to `max_open_for`.
    Up to a quarter less, by chance, so that several gateways do not come at once."""
    max_open_for: Positive = 15.0
    """Seconds that a circuit stays open at most; and at once if the backend refuses the gateway's key."""
    probes: Count = 1
    """Requests that may wait for such a backend's answer at the same time; all others go elsewhere."""
    successes: Count = 1
    """Probes that it must answer well before its circuit is closed."""
    probe_timeout: Positive = 10.0
    """Seconds after which a probe that has brought nothing (of a stream: not its first byte) makes room for another:
    the circuit is open again until then. The request itself goes on, and closes the circuit if it ends well."""
    slow_start: Some = 10.0
    """Seconds in which a backend that has come back gets, from a tenth on, its whole share of the requests. 0: it gets
    it at once."""
    max_pause: Some = 60.0
    """Seconds that a backend which answers 429 comes last, at most, whatever its `Retry-After` says."""
    single_target: bool = False
    """Whether a circuit also opens for models that have one target and no `fallback_models`: callers are then
    answered 503 at once instead of what the backend would do."""
    admin_api: bool = False
    """Serve `GET /admin/breaker` to administrators."""

    def __post_init__(self) -> None:
        if self.max_open_for < self.open_for:
            raise ValueError(f"max_open_for = {self.max_open_for:g} is shorter than open_for = {self.open_for:g}")
