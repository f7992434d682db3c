"""Whether backends answer: checks run when somebody asks, their results kept for `health.interval` seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from .config import HealthConfig
from .errors import GatewayError
from .exchange import Target
from .models import Models
from .providers import Health, HealthCheck, Provider


class ListsModels:
    """The check for providers that registered none: a backend is well if it lists its models."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def check(self, target: Target) -> Health:
        names = await self._provider.models(target)
        if target.model is None or target.model in names:
            return Health(ok=True)
        return Health(ok=True, reason=f"answers, but does not list the model {target.model!r}: is its name right?")


class HealthBoard:
    """Checks targets, each at most once per interval, however many ask."""

    def __init__(self, config: HealthConfig, checks: Mapping[str, HealthCheck]) -> None:
        self._config = config
        self._checks = checks
        self._results: dict[str, tuple[float, asyncio.Task[Health]]] = {}
        self._told: dict[str, Health] = {}

    def told(self, name: str, health: Health) -> None:
        """Somebody watches this target: from now on this is its health, until they say otherwise, and it is no more
        checked here."""
        self._told[name] = health

    async def report(self, models: Models) -> dict[str, Health]:
        """The health of every backend of every model, by target name."""
        targets = models.targets
        results = await asyncio.gather(*(self._result(target) for target in targets))
        return dict(zip((target.name for target in targets), results, strict=True))

    async def _result(self, target: Target) -> Health:
        return self._told.get(target.name) or await self._asked(target)

    def _asked(self, target: Target) -> asyncio.Future[Health]:
        known = self._results.get(target.name)
        if known is None or time.monotonic() - known[0] > self._age_limit(known[1]):
            known = (time.monotonic(), asyncio.create_task(self._check(target)))
            self._results[target.name] = known
        return asyncio.shield(known[1])

    def _age_limit(self, task: asyncio.Task[Health]) -> float:
        """A failure is looked at again sooner, for it is waited for."""
        failed = task.done() and not task.cancelled() and not task.result().ok
        return min(1.0, self._config.interval) if failed else self._config.interval

    async def _check(self, target: Target) -> Health:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._config.timeout):
                found = await self._checks[target.provider].check(target)
        except TimeoutError:
            return Health(ok=False, reason=f"no answer within {self._config.timeout:g} s")
        except GatewayError as error:
            return Health(ok=False, reason=error.message)
        except Exception as error:
            return Health(ok=False, reason=f"the check failed: {type(error).__name__}")
        if found.latency_seconds is not None:
            return found
        return Health(ok=found.ok, reason=found.reason, latency_seconds=time.perf_counter() - started)
