"""What `[plugins.queue]` may say."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import msgspec

from headrace.config import Count, Strict

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
Weight = Annotated[float, msgspec.Meta(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
Wait = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
"""Seconds, up to a day."""
DEFAULT_CLASS = "default"
"""The class of callers whom no other class takes."""


class ClassConfig(Strict, frozen=True):
    """`[plugins.queue.classes.NAME]`: callers who are served before, or after, others."""

    priority: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """Higher goes first. Classes of the same priority share one line."""
    keys: tuple[str, ...] = ()
    """Ids of callers (`headrace keys list`)."""
    teams: tuple[str, ...] = ()
    """Names of teams. A class with neither keys nor teams takes everybody whom no class before it took."""
    weight: Weight = 1.0
    """Of each of its callers, beside callers of the same priority."""


class QueueConfig(Strict, frozen=True):
    """`[plugins.queue]`."""

    max_concurrency: Count | None = None
    """Requests that one backend answers at the same time, unless `backends` says otherwise. Left out: any number."""
    backends: dict[str, Count] = msgspec.field(default_factory=dict)
    """The same for single backends, by name."""
    capacity: dict[str, Count] = msgspec.field(default_factory=dict)
    """Requests for one model that are answered at the same time, wherever: by model, and beside what backends allow."""
    follow: tuple[str, ...] = ()
    """Backends whose slots follow what their engines say, asked by the plugin `routing` (vLLM, SGLang, TGI, llama.cpp):
    as many as run there without any that wait, and no more than is configured."""
    max_waiting: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Requests that may wait, all together; one more is answered 503."""
    max_waiting_per_key: Count | None = None
    """Requests of one caller (with `share_by = "team"`: of one team) that may wait. Left out: as many as of all."""
    timeout: Wait = 60.0
    """Seconds a request waits at most; then it is answered 503. 0: nobody waits."""
    keep_alive: Wait = 0.0
    """Seconds between two comments to a client that asked for a stream and waits, so that nothing on the way closes
    the connection; such an answer goes through the core. 0: no comments."""
    share_by: Literal["key", "team"] = "key"
    """Between whom capacity is shared. A caller without a team counts for itself."""
    key_weights: dict[str, Weight] = msgspec.field(default_factory=dict)
    """How much more than others a caller may use when there is not enough, by its id; not with `share_by = "team"`."""
    team_weights: dict[str, Weight] = msgspec.field(default_factory=dict)
    """The same for a team; with `share_by = "key"`, for each of its callers."""
    classes: dict[str, ClassConfig] = msgspec.field(default_factory=dict)
    """Classes of callers. The first that fits, in the order of the file, is a caller's own."""
    min_share: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.05
    """The part of all free slots that each priority gets at least while somebody of it waits: 0.05 is one in twenty.
    0: lower priorities wait until nobody of a higher one does."""
    default_max_tokens: Count = 1024
    """Tokens of the answer to a request that does not say `max_tokens`: a first guess, until answers have come."""
    admin_api: bool = False
    """Serve `GET /admin/queue` to administrators."""

    def __post_init__(self) -> None:
        rest = self.classes.get(DEFAULT_CLASS)
        if rest is not None and (rest.keys or rest.teams):
            raise ValueError(f"classes.{DEFAULT_CLASS} is everybody whom no other class takes: call this one otherwise")
        names = list(self.classes)
        for name, following in itertools.pairwise(names):
            if not (self.classes[name].keys or self.classes[name].teams):
                raise ValueError(f"classes.{name} takes everybody, so {following!r} takes nobody: put it last")
        priorities = {each.priority for each in self.classes.values()} | {0}
        if self.min_share * (len(priorities) - 1) >= 1:
            below = len(priorities) - 1
            raise ValueError(f"min_share = {self.min_share:g} for {below} lower priorities leaves the highest nothing")
