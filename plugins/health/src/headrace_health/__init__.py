"""Which backends answer: checks, what requests tell, and the models they serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from headrace import hookimpl
from headrace.errors import PluginError

from .config import HealthConfig, TargetConfig, rules_of
from .measures import Measures

if TYPE_CHECKING:
    import click
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.exchange import Attempt, Exchange, Outcome, Target
    from headrace.gateway import Gateway

    from .checks import Checks, Found
    from .discovery import Discovery
    from .report import Report
    from .watch import Watch

FAULTS = frozenset(("unavailable", "upstream_timeout", "upstream_error"))
"""Errors that a backend has to answer for, if another might have done better."""


class Plugin:
    """Checks the backends, hears how requests end, and has those asked last that are not well."""

    Config = HealthConfig

    def __init__(self, config: HealthConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        gateway.watches = True
        gateway.collectors.append(Measures(self, gateway))
        self.watches: Mapping[str, Watch] = {}
        """By target's name; empty before the gateway runs."""
        self._discovery: Discovery | None = None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        for name in self._config.discover:
            gateway.backend(name)  # here, because it must be known before anybody counts the backends
        problems = list(self._problems())
        if problems:
            raise PluginError("health", "; ".join(problems))
        summary = "How the backends of every model are"
        gateway.add_route("/v1/health/inference", self._show, require=self._config.require, summary=summary)

    def _problems(self) -> Iterator[str]:
        known = {target.name for target in self._gateway.models.targets}
        for name, own in self._config.targets.items():
            if name not in known:
                yield f"targets: no model uses a backend {name!r} (there are: {', '.join(known) or 'none'})"
            elif own.kind == "none" and name in self._config.discover:
                yield f'discover: {name!r} has kind = "none", so nobody asks for its models'

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import health

        cli.add_command(health)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        if gateway.looking:
            yield
            return
        async with self.watching():
            yield

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Check every backend for as long as the context lasts."""
        from .checks import Checks
        from .discovery import Discovery

        checks = Checks()
        self._discovery = Discovery(self._gateway, [self._gateway.backend(name) for name in self._config.discover])
        self.watches = {watch.target.name: watch for watch in self._watches(checks)}
        tasks = [asyncio.create_task(watch.run(), name=f"health {name}") for name, watch in self.watches.items()]
        tasks.append(asyncio.create_task(self._end_early(tasks[:]), name="health end"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await checks.aclose()

    async def _end_early(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Whoever has taken over checks by itself."""
        await self._gateway.superseded.wait()
        for task in tasks:
            task.cancel()

    def _watches(self, checks: Checks) -> Iterator[Watch]:
        from .judge import Judge
        from .watch import Timer, Watch

        for target in self._gateway.models.targets:
            rules = rules_of(self._config, target.name)
            provider = self._gateway.providers[target.provider]
            check = checks.choose(rules.kind, provider, self._gateway.health_checks.get(target.provider))
            yield Watch(Judge(target, rules), check, self._tell, Timer())

    async def checked(self) -> None:
        """Return once every backend has been checked."""
        await asyncio.gather(*(watch.checked.wait() for watch in self.watches.values()))

    def report(self, allowed: frozenset[str] | None = None) -> Report:
        """How the models stand, or those of them that are `allowed`."""
        from .report import report

        models = [model for model in self._gateway.models if allowed is None or model.name in allowed]
        return report(models, self._gateway.config.models, self.watches)

    @hookimpl
    def arrange(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
        asked = exchange.peek.model if exchange.peek is not None else ""
        for target in targets:
            state = target.state
            if state.condition in _LAST or (state.serves is not None and (target.model or asked) not in state.serves):
                return self._arranged(targets, asked)
        return None

    def _arranged(self, targets: Sequence[Target], asked: str) -> Sequence[Target]:
        """Last: what is not up, and what does not serve the model. Where a backend is sent the client's name, that name
        may be a mere label to it; it is taken for a model's if another one lists it."""
        is_model = any(not each.model and asked in (each.state.serves or ()) for each in targets)
        first: list[Target] = []
        last: list[Target] = []
        for target in targets:
            unwell = target.state.condition in _LAST
            wanted = target.model or (asked if is_model else None)
            (last if unwell or self._misses(target, wanted) else first).append(target)
        return first + last

    def _misses(self, target: Target, model: str | None) -> bool:
        """Whether a backend is known not to serve this."""
        serves = target.state.serves
        if model is None or serves is None or model in serves:
            return False
        watch = self.watches.get(target.name)
        return watch is None or not watch.judge.any_model

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        watch = self.watches.get(attempt.target.name)
        if watch is None or not watch.judge.concerns(outcome.duration_seconds):
            return
        error = outcome.error
        if error is None:  # of a client that has left as well: then it is not completed
            if outcome.completed and outcome.status < 400:
                watch.request_ended("", refused=False)
        elif error.code == "upstream_auth":
            watch.request_ended("it refuses our key: a request was answered 401, 403 or 407", refused=True)
        elif (error.code in FAULTS and error.retryable) or error.code == "stream_truncated":
            watch.request_ended(error.message, refused=False)

    def _tell(self, watch: Watch, found: Found | None) -> None:
        """Something is known anew."""
        from headrace.providers import Health

        state = watch.target.state
        starting = state.condition == "starting"
        well = state.condition == "up"
        told = Health(ok=well, reason=state.reason, latency_seconds=watch.latency, starting=starting)
        self._gateway.health.told(watch.target.name, told)
        if self._discovery is not None and found is not None and found.listed is not None:
            self._discovery.listed(watch.target.name, found.listed)

    async def _show(self, request: Request) -> Response:
        from starlette.responses import Response

        principal = getattr(request.state, "principal", None)  # there is none where anybody may look
        found = self.report(None if principal is None else principal.models)
        body = msgspec.json.encode(found)
        return Response(body, 503 if found.status == "down" else 200, media_type="application/json")


_LAST = frozenset(("down", "starting"))

__all__ = ["HealthConfig", "Plugin", "TargetConfig"]
