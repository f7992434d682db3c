"""The models clients can ask for, by name and alias, with their targets ready to be ordered."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from .bounds import Bounds
from .config import BackendConfig, Capabilities, Caps, Config, Deadlines, ModelConfig, RetryConfig
from .errors import ConfigError, ModelNotFound, Problem
from .exchange import Exchange, Target
from .providers import Provider, RoutingPolicy
from .retries import RetryBudget

NAMED = 20
"""Models that an error names."""
TIMEOUTS = ("connect", "first_byte", "first_token", "idle")
"""Deadlines of a model that are timeouts of its targets."""


class Model(msgspec.Struct, frozen=True):
    """A model as clients know it."""

    name: str
    targets: tuple[Target, ...]
    policy: RoutingPolicy
    delivery: Literal["auto", "inline", "offload"]
    aliases: tuple[str, ...] = ()
    retry: RetryConfig = RetryConfig()
    total: float | None = None
    """Seconds that an answer may take."""
    midstream: Literal["error", "resume"] = "error"
    bounds: Bounds | None = None
    """Its defaults and caps; None if it has none."""
    capabilities: Capabilities = Capabilities()
    context_window: int | None = None
    budget: RetryBudget = msgspec.field(default_factory=lambda: RetryBudget(0.2, 10.0))
    """What is left for tries beyond the first."""
    fallbacks: tuple[str, ...] = ()
    """Names of models whose targets are asked when these have failed."""
    longer: tuple[str, ...] = ()
    """Names of models for prompts that are too long for this one."""
    primary: tuple[Target, ...] = ()
    """Those of `targets` that the policy orders; none: all."""
    reserves: tuple[Target, ...] = ()
    """Those of `targets` that are asked after all others: the configuration's `fallback`."""

    def ordered(self, exchange: Exchange) -> Sequence[Target]:
        """Its targets as its policy has them asked."""
        if not self.reserves:
            return self.policy.order(exchange, self.targets)
        return [*self.policy.order(exchange, self.primary), *self.reserves]


class Models:
    """Every model by each of its names."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = tuple(models)
        self._by_name = {name: model for model in self._models for name in (model.name, *model.aliases)}
        self._configured = frozenset(self._by_name)
        self._patterns = [
            (_pattern(name), self._by_name[name]) for name in sorted(self._by_name, key=_rank) if "*" in name
        ]
        self._found: dict[str, Model] = {}
        self.found_before: dict[str, tuple[str, ...]] = {}
        """Names of models that were found by the gateway this one takes over from, with the names of their targets."""
        self.spare: dict[str, Target] = {}
        """Backends that no configured model uses and somebody has asked for."""

    def __iter__(self) -> Iterator[Model]:
        return iter((*self._models, *self._found.values()))

    def __len__(self) -> int:
        return len(self._models) + len(self._found)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every backend of every model, each once."""
        configured = {target.name: target for model in self._models for target in model.targets}
        return tuple({**self.spare, **configured}.values())

    def adopt(self, before: Models, *, watched: bool) -> None:
        """Go on with what is known of the backends that there were already: how busy they are; how well, if somebody
        goes on to watch them."""
        if watched:
            self.found_before = {name: tuple(each.name for each in m.targets) for name, m in before._found.items()}
        heirs = {_place(target): target.state.heir(watched=watched) for target in before.targets}
        for target in (*self.spare.values(), *(target for model in self for target in model.targets)):
            state = heirs.get(_place(target))
            if state is not None:
                msgspec.structs.force_setattr(target, "state", state)

    def discover(self, model: Model) -> bool:
        """From now on clients may ask for this one as well, or for what it has become; without targets: no longer.

        Returns whether its name is free: what is configured stays as it is.
        """
        if model.name in self._configured:
            return False
        if model.targets:
            self._found[model.name] = self._by_name[model.name] = model
        else:
            self._found.pop(model.name, None)
            self._by_name.pop(model.name, None)
        return True

    def find(self, name: str, allowed: Container[str] | None = None) -> Model:
        """Raises ModelNotFound, naming the models there are, or those of them that are `allowed`."""
        model = self._by_name.get(name)
        if model is None:
            model = next((each for pattern, each in self._patterns if pattern.fullmatch(name)), None)
        if model is None:
            raise ModelNotFound(
                f"The model {_shown(name)!r} does not exist. Available models: {self._known(allowed)}.", param="model"
            )
        return model

    def _known(self, allowed: Container[str] | None) -> str:
        """Their names, as many as can be read."""
        names = self.names(allowed)
        more = f" and {len(names) - NAMED} more: GET /v1/models" if len(names) > NAMED else ""
        return f"{', '.join(map(_shown, names[:NAMED])) or 'none'}{more}"

    def names(self, allowed: Container[str] | None = None) -> list[str]:
        """Every name and alias, of the `allowed` models alone if they are given."""
        return [name for name, model in self._by_name.items() if allowed is None or model.name in allowed]


def build_models(
    config: Config,
    providers: Mapping[str, Provider],
    policies: Mapping[str, RoutingPolicy],
    source: str,
) -> Models:
    """Let providers check their backends and put models together.

    Raises:
        ConfigError: every unknown provider or policy and every refused backend, at once.
    """
    builder = _Builder(config, providers, policies, source)
    models = [builder.model(name, model) for name, model in config.models.items()]
    if builder.problems:
        raise ConfigError(builder.problems)
    return Models(models)


def build_backend(config: Config, providers: Mapping[str, Provider], name: str, source: str) -> Target:
    """The target that a backend is which no model uses. Raises ConfigError."""
    builder = _Builder(config, providers, {}, source)
    if name not in config.backends:
        builder.problem(
            "[backends]", f"there is no backend {name!r} (there are: {', '.join(config.backends) or 'none'})"
        )
    target = None if builder.problems else builder.target("", 0, name)
    if target is None:
        raise ConfigError(builder.problems)
    return target


def _distinct(used: Iterable[str | BackendConfig]) -> list[str | BackendConfig]:
    """In order, without a backend named twice (in `targets` and again in `fallback`)."""
    kept: list[str | BackendConfig] = []
    for each in used:
        if each not in kept:
            kept.append(each)
    return kept


def _place(target: Target) -> tuple[str, str, str]:
    """Which backend it is, whatever has changed in how it is asked."""
    return target.name, target.provider, target.socket or target.base_url


def _rank(name: str) -> tuple[int, str]:
    """The more of a name is given, the earlier it is looked at."""
    return -len(name), name


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)


def _shown(name: str) -> str:
    return name if len(name) <= 64 else name[:64] + "…"


def _hurried(target: Target, deadlines: Deadlines) -> Target:
    """A target with the model's deadlines in place of its own."""
    set_here = {name: each for name in TIMEOUTS if (each := getattr(deadlines, name)) is not None}
    if not set_here:
        return target
    return msgspec.structs.replace(target, timeouts=msgspec.structs.replace(target.timeouts, **set_here))


class _Builder:
    def __init__(
        self,
        config: Config,
        providers: Mapping[str, Provider],
        policies: Mapping[str, RoutingPolicy],
        source: str,
    ) -> None:
        self.config, self.providers, self.policies, self.source = config, providers, policies, source
        self.problems: list[Problem] = []
        self.named: dict[str, Target] = {}
        """Those of `[backends.NAME]`: the same one for every model."""

    def problem(self, place: str, message: str) -> None:
        found = Problem(f"{self.source}: {place}", message)
        if found not in self.problems:
            self.problems.append(found)

    def model(self, name: str, config: ModelConfig) -> Model:
        policy = self.policies.get(config.policy)
        if policy is None:
            self.problem(
                f"[models.{name}] policy",
                f"no enabled plugin brings the policy {config.policy!r} (there are: {', '.join(self.policies)})",
            )
            policy = self.policies["in_order"]
        budget = RetryBudget(config.retry.budget, config.retry.budget_floor)
        used = _distinct([*config.targets, *(config.fallback if config.use_fallback else ())])
        made = [self.target(name, number, target) for number, target in enumerate(used)]
        targets = tuple(_hurried(target, config.deadlines) for target in made if target)
        count = len(_distinct(config.targets))
        return Model(
            name,
            targets,
            policy,
            config.delivery or self.config.server.delivery,
            tuple(config.aliases),
            retry=config.retry,
            total=config.deadlines.total,
            midstream=config.midstream,
            bounds=Bounds(config.defaults, config.caps) if config.defaults or config.caps != Caps() else None,
            capabilities=config.capabilities,
            context_window=config.context_window,
            budget=budget,
            fallbacks=tuple(config.fallback_models),
            longer=tuple(config.context_window_fallbacks),
            primary=targets[:count] if count else targets,
            reserves=targets[count:] if count else (),
        )

    def no_provider(self, name: str) -> str:
        from . import discovery

        if name in discovery.installed() and name not in self.config.plugins:
            return f"no enabled plugin brings {name!r}: add [plugins.{name}]"
        return f"no enabled plugin brings {name!r} (there are: {', '.join(self.providers) or 'none'})"

    def target(self, model: str, number: int, config: str | BackendConfig) -> Target | None:
        if isinstance(config, str):
            if config in self.named:
                return self.named[config]
            name, place, backend = config, f"[backends.{config}]", self.config.backends[config]
        else:
            name, place, backend = f"{model}-{number}", f"[models.{model}] targets[{number}]", config
            if name in self.config.backends:
                self.problem(place, f"is called {name!r}, as is [backends.{name}]: rename that one")
        provider = self.providers.get(backend.provider)
        if provider is None:
            self.problem(f"{place} provider", self.no_provider(backend.provider))
            return None
        try:
            target = provider.target(name, backend)
        except ValueError as error:
            self.problem(place, str(error))
            return None
        if config == name:
            self.named[name] = target
        return target
