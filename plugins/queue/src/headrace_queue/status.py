"""What can be seen of the queue: for metrics, and for `GET /admin/queue`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from .gate import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .lanes import Place, Plan


class ModelStatus(msgspec.Struct, frozen=True):
    """How it stands with the requests for one model."""

    waiting: int
    running: int
    capacity: int | None
    """Requests that may run if no other model uses its backends; None: any number, and then nobody is counted."""
    drain_rate: float | None
    """Requests that are finished a second, those for models that share its backends included; None: not known yet.
    Models with the same backends are counted together: each of them says the same."""


class BackendStatus(msgspec.Struct, frozen=True):
    """How it stands with one backend."""

    running: int
    capacity: int | None


class Status(msgspec.Struct, frozen=True):
    """Everything about the queue of one worker."""

    worker: int
    waiting: int
    running: int
    classes: dict[str, Counts]
    models: dict[str, ModelStatus]
    backends: dict[str, BackendStatus]


def status(worker: int, plan: Plan, classes: Mapping[str, Counts], now: float) -> Status:
    """As it is at that time of the gate's clock."""
    return Status(
        worker=worker,
        waiting=sum(group.schedule.waiting for group in plan.groups),
        running=sum(group.schedule.running for group in plan.groups),
        classes=dict(classes),
        models={name: _model(place, now) for name, place in plan.places.items()},
        backends={name: BackendStatus(each.used, _finite(each.capacity)) for name, each in plan.backends.items()},
    )


def _model(place: Place, now: float) -> ModelStatus:
    schedule, lane = place.group.schedule, place.lane
    lines = [level.lines[lane] for level in schedule.turns if lane in level.lines]
    return ModelStatus(
        waiting=sum(len(line.queue) for line in lines),
        running=lane.running,
        capacity=_finite(lane.capacity),
        drain_rate=place.group.drain.rate(now),
    )


def _finite(number: float) -> int | None:
    return None if math.isinf(number) else int(number)
