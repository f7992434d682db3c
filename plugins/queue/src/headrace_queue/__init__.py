"""A bounded, fair queue for when every backend is busy."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from headrace import hookimpl
from headrace.estimate import answer_tokens

from .admission import Admission, patience
from .callers import Callers
from .config import ClassConfig, QueueConfig
from .following import following
from .gate import Counts, Gate, Waiter
from .lanes import Plan, check, followed, part, plan
from .measures import Measures
from .status import Status, status

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.exchange import Exchange
    from headrace.gateway import Gateway


class Plugin:
    """Lets as many requests run as there is room for; the others wait for their turn."""

    Config = QueueConfig

    def __init__(self, config: QueueConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        gateway.longest_admission = max(gateway.longest_admission, config.timeout)
        gateway.loads_wanted |= set(config.follow)
        self._callers = Callers(config)
        self._counts = {name: Counts() for name in self._callers.names}
        gateway.collectors.append(Measures(self._counts))
        self._plan = Plan({}, {}, ())
        self._gate = Gate((), config.max_waiting, config.max_waiting_per_key, config.timeout)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        check(self._config, gateway)  # here, because the models are known by now
        if self._config.admin_api:
            gateway.add_route("/admin/queue", self._show, require="admin", summary="Who waits, and what runs")

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        self._plan = plan(self._config, gateway, self._split)  # here, because it is known by now which worker this is
        self._gate.groups = self._plan.groups
        async with following(followed(self._config, gateway), self.set_capacity):
            yield

    @hookimpl
    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
        place = self._plan.places.get(exchange.model.name) if exchange.model is not None else None
        if place is None or not place.lane.is_limited:
            return None
        timeout = patience(exchange, self._config.timeout)
        caller = self._callers.of(exchange.principal)
        exchange.usage_wanted = True
        waiter = Waiter(
            place.group,
            place.lane,
            caller.share,
            self._estimate(exchange),
            weight=caller.weight,
            priority=caller.priority,
            counts=self._counts[caller.class_name],
        )
        return Admission(self._gate, waiter, exchange, timeout, self._config.keep_alive)

    def set_capacity(self, backend: str, slots: int | None) -> None:
        """From now on a backend has so many slots; for other plugins, which may know better than a configuration.

        What runs goes on, if it is more than that. Requests that came while a backend was not limited are not counted.

        Args:
            backend: its name; that of an unnamed target is as `headrace explain` shows it.
            slots: of the whole gateway, each worker has its part; 0: nobody is let in; None: not limited.

        Raises:
            ValueError: there is no such backend, or the number is below 0.
        """
        if backend not in self._plan.backends:
            raise ValueError(f"no model uses a backend {backend!r}")
        if slots is not None and slots < 0:
            raise ValueError(f"a backend cannot have {slots} slots")
        own = math.inf if slots is None else self._split(slots)
        self._plan.backends[backend].capacity = max(1, own) if slots else own
        for group in self._plan.groups:
            self._gate.serve(group)

    def status(self) -> Status:
        """Who waits, what runs and what became of the others, in this worker."""
        return status(self._gateway.worker, self._plan, self._counts, self._gate.now)

    async def _show(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(msgspec.json.encode(self.status()), media_type="application/json")

    def _estimate(self, exchange: Exchange) -> int:
        """Tokens that a request may cost."""
        return self._gateway.estimator.prompt(exchange) + answer_tokens(exchange, self._config.default_max_tokens)

    def _split(self, number: int) -> int:
        """This worker's part of what all share."""
        return part(number, self._gateway.worker, self._gateway.workers)


__all__ = ["ClassConfig", "Plugin", "QueueConfig"]
