"""A circuit breaker for each backend."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from headrace import hookimpl
from headrace.providers import can_answer

from .arranging import arranged, refusal
from .circuits import Circuits
from .config import BreakerConfig
from .judge import Verdict, asked_pause, judge
from .measures import Measures
from .status import Status, TargetStatus, status

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.exchange import Attempt, Exchange, Outcome, Target
    from headrace.gateway import Gateway
    from headrace.models import Model

    from .circuit import Circuit

PROBE = "it is a probe of a backend that had failed"
"""Why the core delivers an answer: it sees its first byte, of which nginx would tell at the end alone."""


class Plugin:
    """Leaves out backends that fail, tries them again with care, and is gentle with those that answer 429."""

    Config = BreakerConfig

    def __init__(
        self,
        config: BreakerConfig,
        gateway: Gateway,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._config, self._gateway, self._clock = config, gateway, clock
        self._random = chance or random.Random()  # noqa: S311 (it spreads requests; nothing secret)
        self._circuits = Circuits(config, clock, self._random)
        self._troubled = self._circuits.troubled
        gateway.collectors.append(Measures(self, gateway))

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        for model in gateway.models:  # here, because they are known by now
            if not self._is_alone(model):
                for target in model.targets:
                    self._circuits.of(target.name)
        if self._config.admin_api:
            gateway.add_route("/admin/breaker", self._show, require="admin", summary="Which backends are left out")

    @hookimpl
    def arrange(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
        if not self._troubled or self._is_alone(exchange.model):
            return None
        now = self._clock()
        ready, out = arranged(targets, self._troubled, now, self._random)
        if out and not self._answers(exchange, ready) and self._answers(exchange, out):
            raise self._refusal(exchange, [self._troubled[target.name] for target in out], now)
        self._circuits.tidy()
        return ready

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        circuit = self._troubled.get(attempt.target.name)
        exchange = attempt.exchange
        if circuit is None or self._is_alone(exchange.model):
            return
        now = self._clock()
        if not circuit.begin(attempt, now):  # since `arrange` it was opened, or another's probe has begun
            raise self._refusal(exchange, [circuit], now)
        if exchange.streaming and not exchange.inline_reason and circuit.is_probe(attempt):
            exchange.inline_reason = PROBE

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        exchange = attempt.exchange
        if exchange.inline_reason == PROBE:
            exchange.inline_reason = ""  # the next try is a matter of its own
        circuit = self._circuits.get(attempt.target.name)
        if circuit is None:
            if self._is_alone(exchange.model):
                return
            circuit = self._circuits.of(attempt.target.name)  # of a model that was found, or others fall back on
        verdict, error, now = judge(attempt, outcome), outcome.error, self._clock()
        counts = verdict is Verdict.GOOD or not (attempt.started < circuit.renewed or _is_repeated(attempt))
        circuit.end(attempt, verdict, now, why=error.message if error is not None else "", counts=counts)
        if verdict is Verdict.BUSY:
            self._circuits.slow(circuit, now, asked_pause(error))

    def status(self) -> Status:
        """The circuits of this worker. A backend that is nowhere one of several has none: see `single_target`."""
        return status(self._gateway.worker, self._circuits.all, self._clock())

    async def _show(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(msgspec.json.encode(self.status()), media_type="application/json")

    def _is_alone(self, model: Model | None) -> bool:
        """Whether a model's only target is asked whatever it has done."""
        return model is None or (len(model.targets) == 1 and not (self._config.single_target or model.fallbacks))

    def _answers(self, exchange: Exchange, targets: Sequence[Target]) -> bool:
        """Whether one of them has the endpoint that is asked for."""
        providers, endpoint = self._gateway.providers, exchange.endpoint
        return any(can_answer(endpoint, target, providers[target.provider]) for target in targets)

    def _refusal(self, exchange: Exchange, circuits: Sequence[Circuit], now: float) -> Exception:
        model = exchange.model.name if exchange.model is not None else ""
        return refusal(model, min(circuit.retry_in(now) for circuit in circuits))


def _is_repeated(attempt: Attempt) -> bool:
    """Whether this request has been at this target before: it counts once, or a request that no backend can answer
    would open all circuits by its retries."""
    earlier = attempt.exchange.attempts[: attempt.number - 1]
    return any(each.target.name == attempt.target.name for each in earlier)


__all__ = ["BreakerConfig", "Plugin", "Status", "TargetStatus"]
