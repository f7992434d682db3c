"""What can be seen of the circuits: for metrics, and for `GET /admin/breaker`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from .circuit import Circuit

Shown = Literal["closed", "open", "half_open", "slow"]


class TargetStatus(msgspec.Struct, frozen=True):
    """How it stands with one backend, as far as this worker knows."""

    state: Shown
    """`slow`: its circuit is closed, and it gets less than its share: it has come back, or answers 429."""
    seconds: float
    """Since its circuit is in that state."""
    reason: str
    """Why its circuit was opened; empty while it is closed."""
    failures: int
    """Requests that failed one after the other."""
    requests: int
    """Those that ended within the window, of which something was learnt of the backend."""
    rate: float | None
    """The part of them that failed; None if there are none."""
    share: float
    """Of the requests that it would get if nothing were wrong: 0 to 1."""
    probes: int
    """That wait for its answer now."""
    openings: int
    """How often it was opened without having been closed for long in between."""
    retry_in: float
    """Seconds until it is tried again, if it is open; else 0."""


class Status(msgspec.Struct, frozen=True):
    """Everything about the circuits of one worker."""

    worker: int
    targets: dict[str, TargetStatus]


def status(worker: int, circuits: Mapping[str, Circuit], now: float) -> Status:
    """As it is now."""
    return Status(worker, {name: _target(circuit, now) for name, circuit in circuits.items()})


def _target(circuit: Circuit, now: float) -> TargetStatus:
    state = circuit.look(now)
    share = circuit.pace.share(now) if state == "closed" else 0.0
    total, failed = circuit.window.counts(now)
    return TargetStatus(
        state="slow" if state == "closed" and share < 1.0 else state,
        seconds=round(now - circuit.since, 3),
        reason="" if state == "closed" else circuit.reason,
        failures=circuit.failures,
        requests=total,
        rate=failed / total if total else None,
        share=share,
        probes=circuit.probes,
        openings=circuit.openings,
        retry_in=round(circuit.retry_in(now), 3),
    )
