"""What `[plugins.routing]` may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from headrace.config import Strict

from .session import Session

Kind = Literal[
    "round_robin",
    "weighted",
    "random",
    "least_busy",
    "latency",
    "cost",
    "priority",
    "sticky",
    "queue_aware",
    "pick",
]
Price = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Group = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]

OPTIONS: dict[str, tuple[str, ...]] = {
    "round_robin": (),
    "weighted": (),
    "random": (),
    "least_busy": (),
    "latency": ("half_life", "explore", "tokens"),
    "cost": ("costs",),
    "priority": ("priorities",),
    "sticky": ("by", "load_factor", "load_floor"),
    "queue_aware": ("max_age", "queue_factor"),
    "pick": ("header", "field", "roles", "teams", "keys", "otherwise", "only"),
}
"""The options of each kind of policy; their defaults are those of its class."""


class PolicyConfig(Strict, frozen=True):
    """`[plugins.routing.policies.NAME]`: a policy of one's own, which models name in `policy`. Named as a kind is, it
    takes the place of that one. A key that is not for its kind is an error."""

    kind: Kind
    """What it is a variant of."""
    half_life: Seconds | None = None
    """Of `latency`: seconds in which half of what is known of a target is forgotten; 10."""
    explore: Annotated[float, msgspec.Meta(ge=0, le=0.5)] | None = None
    """Of `latency`: the part of all requests that may go to a target nobody has heard of for a half-life; 0.02."""
    tokens: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    """Of `latency`: tokens of an answer, beside the first, that count when targets are compared; 64. 0: the time to the
    first token alone."""
    costs: dict[str, Price] | None = None
    """Of `cost`: what targets cost for this policy, where it is not as in `[plugins.routing.costs]`."""
    priorities: dict[str, Group] | None = None
    """Of `priority`: the groups of targets for this policy, in place of `[plugins.routing.priorities]`."""
    by: tuple[str, ...] | None = None
    """Of `sticky`: where the name of a session may stand, the first that does counts: `header:NAME`; the body's
    `prompt_cache_key`, `safety_identifier` or `user`; `key`, the caller; `team`, the caller's team. Left out:
    `["header:x-session-id", "prompt_cache_key", "user"]`."""
    load_factor: Annotated[float, msgspec.Meta(ge=1, le=100)] | None = None
    """Of `sticky`: how many times its part of all requests in flight a target may have before the next one of the
    session is asked; 1.25."""
    load_floor: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    """Of `sticky`: requests in flight up to which a target is not too busy in any case; 4."""
    max_age: Seconds | None = None
    """Of `queue_aware`: seconds for which an engine's word counts, 10; then our own requests in flight do."""
    queue_factor: Annotated[float, msgspec.Meta(ge=1, le=1000)] | None = None
    """Of `queue_aware`: how many running requests are as bad as one that waits in the engine; 4."""
    header: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]*$")] | None = None
    """Of `pick`: the request header that names a target; `x-headrace-target`. Empty: none."""
    field: str | None = None
    """Of `pick`: the field of the body's `metadata` that names a target; `target`. Empty: none."""
    roles: tuple[Literal["user", "admin"], ...] | None = None
    """Of `pick`: callers with these roles may name a target; `["admin"]`."""
    teams: tuple[str, ...] | None = None
    """Of `pick`: callers of these teams may, too; none."""
    keys: tuple[str, ...] | None = None
    """Of `pick`: callers with these ids may, too; none."""
    otherwise: str | None = None
    """Of `pick`: the policy for requests that name no target, and for the order of the others; `least_busy`."""
    only: bool | None = None
    """Of `pick`: whether no other of the model's `targets` is asked if the named one fails; false. What a model falls
    back on is asked all the same."""

    def __post_init__(self) -> None:
        for name in self.options:
            if name not in OPTIONS[self.kind]:
                known = ", ".join(OPTIONS[self.kind]) or "none"
                raise ValueError(f"{name} is not for the kind {self.kind!r}, which has: {known}")
        Session(self.by or ())

    @property
    def options(self) -> dict[str, Any]:
        """What was given, beside the kind."""
        names = (name for name in self.__struct_fields__ if name != "kind")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class MetricsConfig(Strict, frozen=True):
    """`[plugins.routing.metrics]`: how the engines behind models with a policy of the kind `queue_aware`, and those
    that `[plugins.queue] follow` names, are asked for their load. Those of vLLM, SGLang, TGI and
    llama.cpp are understood."""

    interval: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 1.0
    """Seconds between two questions to the same engine, for each worker."""
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """How much shorter or longer that may be at random, in parts of it."""
    timeout: Seconds = 2.0
    """Seconds an engine may take to answer."""
    path: Annotated[str, msgspec.Meta(pattern=r"^/\S*$")] = "/metrics"
    """Where a backend has its metrics, beside its `/v1`."""


class RoutingConfig(Strict, frozen=True):
    """`[plugins.routing]`."""

    costs: dict[str, Price] = msgspec.field(default_factory=dict)
    """What targets cost, in whatever unit, for policies of the kind `cost`: by the name of a backend; of one that is
    written out in a model's table, `MODEL-NUMBER` from 0."""
    priorities: dict[str, Group] = msgspec.field(default_factory=dict)
    """The groups of targets for policies of the kind `priority`, by the same names: 0 is asked first. Targets that are
    not named follow one by one, as they stand in the file."""
    policies: dict[str, PolicyConfig] = msgspec.field(default_factory=dict)
    """Policies of one's own, by the name that models give as their `policy`."""
    metrics: MetricsConfig = MetricsConfig()
    """How engines are asked for their load."""

    def __post_init__(self) -> None:
        for name, policy in self.policies.items():
            if name in OPTIONS and name != policy.kind:
                raise ValueError(f"policies.{name}: that name means the kind {name!r}, not {policy.kind!r}")
