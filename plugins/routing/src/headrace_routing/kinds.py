"""From the configuration to policies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.providers import RoutingPolicy

from .busy import Cost, LeastBusy, Priority
from .config import OPTIONS, PolicyConfig, RoutingConfig
from .engine import Loads, QueueAware
from .latency import Latency
from .pick import Pick
from .sticky import Sticky
from .turns import Random, RoundRobin, Weighted

if TYPE_CHECKING:
    from headrace.gateway import Gateway

Make = Callable[..., RoutingPolicy]

KINDS: dict[str, Make] = {
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "random": Random,
    "least_busy": LeastBusy,
    "latency": Latency,
    "cost": Cost,
    "priority": Priority,
    "sticky": Sticky,
    "queue_aware": QueueAware,
    "pick": Pick,
}


class Means(NamedTuple):
    """What policies work with."""

    rng: random.Random
    loads: Loads
    clock: Callable[[], float] = time.perf_counter
    """That of `Attempt.started`."""


def make_policies(config: RoutingConfig, means: Means) -> dict[str, RoutingPolicy]:
    """Every kind under its own name, and every policy that is configured under its."""
    plain = {kind: PolicyConfig(kind=kind) for kind in OPTIONS}  # type: ignore[arg-type]
    return {name: _make(name, each, config, means) for name, each in {**plain, **config.policies}.items()}


def _make(name: str, policy: PolicyConfig, config: RoutingConfig, means: Means) -> RoutingPolicy:
    options: dict[str, Any] = policy.options
    if policy.kind == "latency":
        options["clock"] = means.clock
    if policy.kind == "cost":
        options["costs"] = {**config.costs, **options.get("costs", {})}
    if policy.kind == "priority":
        options.setdefault("priorities", config.priorities)
    if policy.kind == "queue_aware":
        options["loads"] = means.loads
    if policy.kind != "pick":
        options["rng"] = means.rng
    return KINDS[policy.kind](name, **options)


def used(gateway: Gateway) -> Iterator[tuple[str, RoutingPolicy]]:
    """Every model, by name, with the policy that orders its targets in the end."""
    for model in gateway.models:
        yield model.name, model.policy.rest if isinstance(model.policy, Pick) else model.policy


def problems(config: RoutingConfig, gateway: Gateway) -> Iterator[str]:
    """What can be wrong once backends and models are known: names that are no target's, targets without a cost."""
    names = {*gateway.config.backends, *(target.name for target in gateway.models.targets)}
    for place, given in _names(config):
        for name in given:
            if name not in names:
                yield f"{place}: there is no target {name!r} (there are: {', '.join(sorted(names)) or 'none'})"
    policies = dict(used(gateway))
    for model in gateway.models:
        policy = policies[model.name]
        if isinstance(policy, Cost):
            yield from policy.problems(model)


def _names(config: RoutingConfig) -> Iterator[tuple[str, Iterator[str]]]:
    """Every table by the names of targets, and those names."""
    yield "costs", iter(config.costs)
    yield "priorities", iter(config.priorities)
    for name, policy in config.policies.items():
        yield f"policies.{name}.costs", iter(policy.costs or ())
        yield f"policies.{name}.priorities", iter(policy.priorities or ())
