"""Routing policies: which backend is asked first."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import PluginError

from .config import RoutingConfig
from .engine import Loads, QueueAware
from .kinds import Means, make_policies, problems, used
from .latency import Latency
from .pick import Pick
from .poller import Poller

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Outcome, Target
    from headrace.gateway import Gateway, Register


class Plugin:
    """Brings the policies, tells them what became of each try, and asks engines for their load where one of them wants
    to know."""

    Config = RoutingConfig

    def __init__(self, config: RoutingConfig, gateway: Gateway) -> None:
        self._config = config
        self._rng = random.Random()  # noqa: S311 (nothing secret)
        self._loads = Loads()
        self._policies = make_policies(config, Means(self._rng, self._loads))

    @hookimpl
    def register_routing_policies(self, register: Register) -> None:
        for policy in self._policies.values():
            register(policy)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        """Here, because policies and models are all known by now."""
        found = []
        for policy in self._policies.values():
            if isinstance(policy, Pick):
                try:
                    policy.bind(gateway.policies)
                except ValueError as error:
                    found.append(str(error))
        found += problems(self._config, gateway)
        if found:
            raise PluginError("routing", "; ".join(found))

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        policy = attempt.model.policy if attempt.model is not None else None
        if isinstance(policy, Latency | Pick):
            policy.learn(attempt, outcome)

    @hookimpl
    @contextlib.asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        targets = polled(gateway)
        if gateway.looking or not targets:
            yield
            return
        poller = Poller(self._config.metrics, gateway.upstream, targets, self._loads, self._rng)
        polling = asyncio.create_task(poller.run(), name="routing-poller")
        ending = asyncio.create_task(_end_early(gateway, polling), name="routing-end")
        try:
            yield
        finally:
            for task in (ending, polling):
                task.cancel()
            await asyncio.gather(ending, polling, return_exceptions=True)


async def _end_early(gateway: Gateway, polling: asyncio.Task[None]) -> None:
    """Whoever has taken over polls by itself."""
    await gateway.superseded.wait()
    polling.cancel()


def polled(gateway: Gateway) -> list[Target]:
    """The targets whose engines are to be asked for their load, each once."""
    wanting = {name for name, policy in used(gateway) if isinstance(policy, QueueAware)}
    targets = [
        target
        for model in gateway.models
        for target in model.targets
        if model.name in wanting or target.name in gateway.loads_wanted
    ]
    return list({target.name: target for target in targets}.values())
