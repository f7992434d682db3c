"""What is known of the backends, for `GET /v1/health/inference` and `headrace health`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from headrace.config import ModelConfig
from headrace.exchange import Target
from headrace.fleet import Condition
from headrace.models import Model

from .watch import Watch

Status = Literal["ok", "degraded", "down"]


class LastError(msgspec.Struct, frozen=True):
    """What went wrong last."""

    message: str
    at: float
    """Seconds since 1970."""


class TargetReport(msgspec.Struct, frozen=True):
    """One backend as a model uses it."""

    name: str
    role: Literal["primary", "fallback"]
    condition: Condition
    reason: str
    since: float
    """Seconds since 1970."""
    latency_ms: float | None
    """Of the last check."""
    serves: tuple[str, ...] | None
    """The models that it lists; None if it has no list."""
    last_error: LastError | None
    in_flight: int


class ModelReport(msgspec.Struct, frozen=True):
    """A model and its backends, in the order of the configuration."""

    status: Status
    targets: list[TargetReport]
    fallback_models: tuple[str, ...] = ()
    """Models that are asked when all of these have failed."""


class Report(msgspec.Struct, frozen=True):
    """All of it: `ok` if every backend is up, `degraded` if every model has one that is, else `down`."""

    status: Status
    models: dict[str, ModelReport]


def report(models: list[Model], config: Mapping[str, ModelConfig], watches: Mapping[str, Watch]) -> Report:
    """How these models stand."""
    found = {model.name: _model(model, config.get(model.name), watches) for model in models}
    return Report(_worst([each.status for each in found.values()]), found)


def rows(report: Report, watches: Mapping[str, Watch]) -> list[dict[str, Any]]:
    """One for each backend."""
    used: dict[str, list[str]] = {name: [] for name in watches}
    for name, model in report.models.items():
        for target in model.targets:
            used.setdefault(target.name, []).append(name)
    return [_row(watch, used[name]) for name, watch in watches.items()]


def _row(watch: Watch, models: list[str]) -> dict[str, Any]:
    state = watch.target.state
    return {
        "target": watch.target.name,
        "condition": state.condition,
        "latency_ms": _milliseconds(watch),
        "models": models,
        "reason": _reason(watch.target, watch),
    }


def _model(model: Model, config: ModelConfig | None, watches: Mapping[str, Watch]) -> ModelReport:
    primaries = len(model.targets) if config is None else _distinct(config.targets)
    targets = [
        _target(target, watches.get(target.name), "primary" if number < primaries else "fallback")
        for number, target in enumerate(model.targets)
    ]
    up = sum(target.condition == "up" for target in targets)
    status: Status = "ok" if up and up == len(targets) else "degraded" if up else "down"
    return ModelReport(status, targets, model.fallbacks)


def _distinct(used: list[Any]) -> int:
    """How many there are; one that is named twice is one."""
    return sum(each not in used[:number] for number, each in enumerate(used))


def _target(target: Target, watch: Watch | None, role: Literal["primary", "fallback"]) -> TargetReport:
    state = target.state
    return TargetReport(
        name=target.name,
        role=role,
        condition=state.condition,
        reason=_reason(target, watch),
        since=round(time.time() - (time.monotonic() - state.since), 3),
        latency_ms=_milliseconds(watch),
        serves=None if state.serves is None else tuple(sorted(state.serves)),
        last_error=LastError(state.failure, round(state.failed_at, 3)) if state.failure else None,
        in_flight=state.in_flight,
    )


def _reason(target: Target, watch: Watch | None) -> str:
    unasked = watch is not None and watch.judge.rules.kind == "none"
    return target.state.reason or ("not checked" if unasked else "")


def _milliseconds(watch: Watch | None) -> float | None:
    return None if watch is None or watch.latency is None else round(watch.latency * 1000, 1)


def _worst(found: list[Status]) -> Status:
    return "down" if "down" in found else "degraded" if "degraded" in found else "ok"
