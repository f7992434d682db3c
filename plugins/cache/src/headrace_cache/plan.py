"""What is to be done with one request: nothing at all, or to look for its answer, and to keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .config import CacheConfig, ModelRules
from .counts import Counts
from .entry import Entry
from .key import Keys, Unclear, keys_of, read, served_by, tenant_of
from .rules import is_deterministic, is_kept, looks_around
from .wishes import Wish, wish_of

if TYPE_CHECKING:
    from headrace.exchange import Exchange
    from headrace.models import Model, Models

    from .flight import Flight
    from .marks import Marks

MOST_READ = 1_048_576
"""Bytes of a request. Larger ones are not cached: to read them would hold everybody up."""
MOST_KNOWN = 1000
"""Models of which is remembered who serves them."""
USUAL = ModelRules()


class Plan(msgspec.Struct, eq=False):
    """Of one request."""

    keys: Keys
    model: str
    ttl: int
    wish: Wish
    epoch: tuple[str, str]
    """Of this gateway, when the request came."""
    counts: Counts
    found: Entry | None = None
    """What lies in memory."""
    fresh: bool = False
    """Whether what is kept is of no use: a backend must be asked."""
    flight: Flight | None = None
    """The answer, while this request leads."""
    server_epoch: tuple[str, str] | None = None
    """That of the server; None: nothing is to be kept there."""

    @property
    def place(self) -> tuple[str, tuple[str, str]]:
        """What requests have in common that may have the same answer now."""
        return (self.keys.own, self.epoch)


class Planner:
    """Says what is to be done.

    Args:
        config: the rules.
        models: all there are.
    """

    def __init__(self, config: CacheConfig, models: Models) -> None:
        self._config, self._models = config, models
        self._served: dict[str, tuple[Model, list[list[str]]]] = {}

    def plan(self, exchange: Exchange, model: Model, counts: Counts, marks: Marks) -> Plan | None:
        """None: it is not for the cache. Raises InvalidRequest: it asks for something that there is not."""
        config, rules = self._config, self._config.models.get(model.name, USUAL)
        wish = wish_of(exchange)
        if wish.word == "off" or not rules.enabled:
            return None
        asked = wish.word == "on" and config.on_request
        always = config.always if rules.always is None else rules.always
        if not (asked or always or is_deterministic(exchange)) or len(exchange.body) > MOST_READ:
            return None
        try:
            fields = read(exchange.body)
            if is_kept(exchange, fields) or (looks_around(exchange, fields) and not asked):
                return None
            tenant = tenant_of(exchange.principal, config.partition)
            keys = keys_of(exchange, fields, tenant, self._served_by(model), config.ignore)
        except (Unclear, RecursionError):
            return None
        ttl = rules.ttl or config.ttl
        ttl = ttl if wish.ttl is None else min(ttl, wish.ttl)
        return Plan(keys, model.name, ttl, wish, marks.of(model.name), counts, fresh=wish.word == "refresh")

    def _served_by(self, model: Model) -> list[list[str]]:
        known = self._served.get(model.name)
        if known is None or known[0] is not model:
            if len(self._served) >= MOST_KNOWN:
                self._served.clear()
            others = [self._models.find(name) for name in (*model.fallbacks, *model.longer)]
            known = self._served[model.name] = (model, served_by([model, *others]))
        return known[1]
