"""Budgets of money and tokens: reserved before the backend is asked, settled by what was used."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import BudgetConfig, LimitConfig, PriceConfig

if TYPE_CHECKING:
    import click

    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway
    from headrace.limits import Standing


class Plugin:
    """Refuses what no budget is left for, with 429 and the time at which it begins anew."""

    Config = BudgetConfig
    clock: Callable[[], float] = staticmethod(time.time)
    """Seconds since the epoch."""

    def __init__(self, config: BudgetConfig, gateway: Gateway) -> None:
        from .admission import Admission, Desk
        from .alerts import Alerts
        from .answers import Words
        from .measures import Measures
        from .money import Prices
        from .periods import Calendar, zone
        from .rules import Rules

        self.config = config
        self._gateway = gateway
        self.calendar = Calendar(zone(config.time_zone), self.clock)
        free = config.unpriced == "free"
        self.prices = Prices(config.prices, free, lambda name: gateway.models.find(name))
        self.words = Words(config.currency, self.calendar)
        self._rules = Rules(config.limits, self.prices, self.calendar)
        self._webhook = None
        if config.alert_url is not None:
            from .webhook import Webhook

            self._webhook = Webhook(config.alert_url, gateway)
        alerts = Alerts(self.words, self.clock, self._webhook.post if self._webhook else None)
        measures = Measures(config.currency, self.clock)
        gateway.collectors.append(measures)
        self._admission, self._desk = Admission, Desk(config, gateway, self.words, alerts, measures)
        gateway.counts = True

    @hookimpl
    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
        applied = self._rules.of(exchange)
        if applied is None or not (applied.parts or applied.closed):
            return None
        return self._admission(self._desk, exchange, applied)

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None] | None:
        return self._webhook.running() if self._webhook else None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        """Nothing to add: here the models are known, and what is said of them can be checked."""
        from headrace.errors import ConfigError, Problem

        from .check import problems

        found = [
            Problem(f"{gateway.source}: [plugins.budget] {place}", f"{place}: {text}")
            for place, text in problems(self.config, self.prices, list(gateway.models))
        ]
        if found:
            raise ConfigError(found)

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import budget

        cli.add_command(budget)

    @hookimpl
    async def standing(self, principal: Principal) -> list[Standing]:
        """Of budgets that are enforced alone: others are none of the caller's business."""
        today = self.calendar.today()
        parts = {
            part.limit: part
            for model in self._gateway.models
            if principal.models is None or model.name in principal.models
            for part in self._rules.parts(principal, model.name, today)
            if part.enforced
        }
        levels = await self._gateway.ledger.levels(tuple(parts))
        return [self.words.standing(parts[level.limit], level.used) for level in levels]


__all__ = ["BudgetConfig", "LimitConfig", "Plugin", "PriceConfig"]
