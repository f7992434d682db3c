"""From the configuration to backends, lanes and groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import PluginError

from .following import ANY_NUMBER, Followed
from .gate import Group
from .slots import Backend, Lane

if TYPE_CHECKING:
    from headrace.config import Config
    from headrace.exchange import Target
    from headrace.gateway import Gateway
    from headrace.models import Model

    from .config import QueueConfig

Identity = tuple[str, str | None]
"""Where a backend is: targets with the same are one, whatever they are called."""


class Place(NamedTuple):
    """What the requests for one model need."""

    lane: Lane
    group: Group


class Plan(NamedTuple):
    """Everything there is to share."""

    places: dict[str, Place]
    """By model."""
    backends: dict[str, Backend]
    """By each of their names."""
    groups: tuple[Group, ...]


def check(config: QueueConfig, gateway: Gateway) -> None:
    """Whether the configured numbers can be kept. Raises PluginError, saying everything that is wrong."""
    problems = list(_problems(config, gateway))
    if problems:
        raise PluginError("queue", "; ".join(problems))


def _problems(config: QueueConfig, gateway: Gateway) -> Iterator[str]:
    models = {model.name for model in gateway.models}
    targets = {target.name: identity(target) for model in gateway.models for target in model.targets}
    for name in config.capacity:
        if name not in models:
            yield f"capacity: there is no model {name!r} (there are: {', '.join(models) or 'none'})"
    numbers: dict[Identity, tuple[str, int]] = {}
    for name, number in config.backends.items():
        if name not in targets:
            yield f"backends: no model uses a backend {name!r} (there are: {', '.join(targets) or 'none'})"
        elif numbers.setdefault(targets[name], (name, number))[1] != number:
            yield f"backends: {numbers[targets[name]][0]!r} and {name!r} are the same server: give both the same number"
    for name in config.follow:
        if name not in targets:
            yield f"follow: no model uses a backend {name!r} (there are: {', '.join(targets) or 'none'})"
    if config.follow and "routing" not in gateway.plugins:
        yield "follow: it is the plugin routing that asks engines: add [plugins.routing]"
    yield from _too_small(config, gateway.config.server.workers)


def _too_small(config: QueueConfig, workers: int) -> Iterator[str]:
    """Each worker has its part of every number, and a part of nothing would never let anybody in."""
    given = {f"backends.{name}": number for name, number in config.backends.items()}
    given |= {f"capacity.{name}": number for name, number in config.capacity.items()}
    if config.max_concurrency is not None:
        given["max_concurrency"] = config.max_concurrency
    for name, number in given.items():
        if number < workers:
            yield f"{name} = {number} is too little for server.workers = {workers}, which share it: make it {workers}"


def part(total: int, worker: int, workers: int) -> int:
    """What one worker has of a number that all share: each the same, and the first ones the rest."""
    return total // workers + (worker < total % workers)


def plan(config: QueueConfig, gateway: Gateway, split: Callable[[int], int]) -> Plan:
    """Put backends, lanes and groups together. `split`: from a configured number to this worker's part of it."""
    backends = _backends(config, gateway, split)
    lanes: dict[object, list[str]] = {}
    used: dict[object, tuple[Backend, ...]] = {}
    for model in gateway.models:
        own = tuple(dict.fromkeys(backends[target.name] for target in primary(model, gateway.config)))
        key: object = model.name if model.name in config.capacity else frozenset(own)  # with its own limit: alone
        lanes.setdefault(key, []).append(model.name)
        used[key] = own
    made = []
    for key, models in lanes.items():
        limit = config.capacity.get(models[0])
        made.append(Lane(used[key], math.inf if limit is None else split(limit), models))
    groups = [Group(members, config.min_share) for members in connected(made)]
    pairs = [(group, lane) for group in groups for lane in group.schedule.slots.lanes]
    return Plan({name: Place(lane, group) for group, lane in pairs for name in lane.models}, backends, tuple(groups))


def _backends(config: QueueConfig, gateway: Gateway, split: Callable[[int], int]) -> dict[str, Backend]:
    targets = {target.name: identity(target) for model in gateway.models for target in model.targets}
    numbers: dict[Identity, int] = {targets[name]: ANY_NUMBER for name in config.follow}
    if config.max_concurrency is not None:
        numbers = dict.fromkeys(targets.values(), config.max_concurrency)
    numbers |= {targets[name]: number for name, number in config.backends.items()}
    made: dict[Identity, Backend] = {}
    for name, where in targets.items():
        made.setdefault(where, Backend(name, split(numbers[where]) if where in numbers else math.inf))
    return {name: made[where] for name, where in targets.items()}


def followed(config: QueueConfig, gateway: Gateway) -> list[Followed]:
    """The backends that follow their engines, with what they may have at most."""
    targets = {target.name: target for model in gateway.models for target in model.targets}
    numbers = {identity(targets[name]): number for name, number in config.backends.items()}
    found = {identity(targets[name]): targets[name] for name in config.follow}
    return [Followed(target, numbers.get(where, config.max_concurrency)) for where, target in found.items()]


def identity(target: Target) -> Identity:
    """Where a target is."""
    if target.base_url or target.socket:
        return target.base_url, target.socket
    return f"name {target.name}", None


def primary(model: Model, config: Config) -> tuple[Target, ...]:
    """A model's targets without its fallback: that is for when they fail, and gives no room while they are well."""
    distinct: list[object] = []
    for each in config.models[model.name].targets:
        if each not in distinct:
            distinct.append(each)
    return model.targets[: len(distinct)] or model.targets


def connected(lanes: list[Lane]) -> list[list[Lane]]:
    """Lanes that share backends, directly or by way of others, together."""
    groups: list[tuple[set[Backend], list[Lane]]] = []
    for lane in lanes:
        shared = [group for group in groups if not group[0].isdisjoint(lane.backends)]
        groups = [group for group in groups if group not in shared]
        backends = set(lane.backends).union(*(group[0] for group in shared))
        groups.append((backends, [*(each for group in shared for each in group[1]), lane]))
    return [members for _, members in groups]
