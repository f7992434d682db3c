"""Limits on requests, tokens and open requests: reserved before the backend is asked, settled by what was used."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import PluginError

from .config import LimitConfig, RatelimitConfig
from .measures import Measures

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway
    from headrace.limits import Standing


class Plugin:
    """Refuses what does not fit, with 429 and the time after which it will."""

    Config = RatelimitConfig

    def __init__(self, config: RatelimitConfig, gateway: Gateway) -> None:
        from .holding import Holding
        from .rules import Rules, walls

        self._holding = Holding
        self._config = config
        self._gateway = gateway
        self._rules = Rules(config.limits)
        gateway.counts = True
        self._measures = Measures()
        gateway.collectors.append(self._measures)
        if config.wall:
            gateway.walls += walls(config.limits)

    @hookimpl
    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
        applied = self._rules.of(exchange)
        if not applied.limits:
            return None
        return self._holding(self._gateway, self._config, exchange, applied, self._measures.refused)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        """Nothing to add: here the models are known, and those of rules can be checked."""
        known = [model.name for model in gateway.models]
        for number, rule in enumerate(self._config.limits):
            for name in rule.models:
                if name not in known:
                    text = f"[[limits]] {number}: there is no model {name!r} (there are: {', '.join(known) or 'none'})"
                    raise PluginError("ratelimit", text)

    @hookimpl
    async def standing(self, principal: Principal) -> list[Standing]:
        from .answers import standing

        allowed = principal.models
        models = [model.name for model in self._gateway.models if allowed is None or model.name in allowed]
        told = self._rules.standing_for(principal, models)
        levels = await self._gateway.ledger.levels(tuple(told))
        return [standing(level, *told[level.limit]) for level in levels]


__all__ = ["LimitConfig", "Plugin", "RatelimitConfig"]
