"""The policy `pick`: a request names its target, if its caller may."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from headrace.errors import Forbidden, InvalidRequest
from headrace.exchange import ANONYMOUS, Attempt, Exchange, Outcome, Target
from headrace.providers import Explains, InOrder, RoutingPolicy

from .latency import Latency


class Pick:
    """The target that a request names; without a name, whichever another policy says.

    Args:
        header: a request's header that may name a target; empty for none.
        field: a field of its `metadata` that may do so, where there is no such header; empty for none.
        roles, teams, keys: whose requests may: it is enough to be among one of them.
        otherwise: name of the policy that orders the others, and all of them if none is named.
        only: whether the others are left out, and not asked if the named one fails. What a model falls back on is for
            the core to ask.
    """

    def __init__(
        self,
        name: str,
        *,
        header: str = "x-headrace-target",
        field: str = "target",
        roles: Collection[str] = ("admin",),
        teams: Collection[str] = (),
        keys: Collection[str] = (),
        otherwise: str = "least_busy",
        only: bool = False,
    ) -> None:
        self.name, self.otherwise = name, otherwise
        self._header, self._field = header.lower().encode(), field
        self._quoted = msgspec.json.encode(field)
        self._roles, self._teams, self._keys = frozenset(roles), frozenset(teams), frozenset(keys)
        self._only = only
        self.rest: RoutingPolicy = InOrder()

    def bind(self, policies: Mapping[str, RoutingPolicy]) -> None:
        """Find `otherwise` among all policies there are. Raises ValueError."""
        found = policies.get(self.otherwise)
        if found is None or isinstance(found, Pick):
            there = ", ".join(name for name, each in policies.items() if not isinstance(each, Pick))
            raise ValueError(f"policies.{self.name}: otherwise: {self.otherwise!r} is none of {there}")
        self.rest = found

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        """Raises Forbidden, or InvalidRequest if there is no such target."""
        named = self._named(exchange)
        if named is None:
            return self.rest.order(exchange, targets)
        if not self._may(exchange):
            raise Forbidden("This key may not choose a target.", code="target_not_allowed")
        asked = targets if exchange.attempts or exchange.model is None else exchange.model.targets
        chosen = next((target for target in asked if target.name == named), None)
        if chosen is not None:
            others = () if self._only else self.rest.order(exchange, targets)
            return [chosen, *(each for each in others if each is not chosen)]
        if exchange.attempts:  # these are those of a model that the one with the named target falls back on
            return self.rest.order(exchange, targets)
        there = ", ".join(target.name for target in asked)
        shown = named if len(named) <= 64 else named[:64] + "…"
        raise InvalidRequest(f"This model has no target {shown!r}. It has: {there}.", code="target_not_found")

    def learn(self, attempt: Attempt, outcome: Outcome) -> None:
        """What is to be learnt of a try is for the other policy."""
        if isinstance(self.rest, Latency):
            self.rest.learn(attempt, outcome)

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says that it was named, or what the other policy says."""
        named = self._named(exchange)
        if named == target.name:
            return "named by the request"
        said = self.rest.why(exchange, target) if isinstance(self.rest, Explains) else ""
        return ": ".join(filter(None, (self.rest.name, said)))

    def _named(self, exchange: Exchange) -> str | None:
        if self._header and (value := exchange.header(self._header)):
            return value
        if self._field and self._quoted in exchange.body and b'"metadata"' in exchange.body:
            return _text_in(exchange.fields.get("metadata"), self._field)
        return None

    def _may(self, exchange: Exchange) -> bool:
        who = exchange.principal or ANONYMOUS
        return who.role in self._roles or who.id in self._keys or (who.team is not None and who.team in self._teams)


def _text_in(raw: msgspec.Raw | None, field: str) -> str | None:
    """A field of an object, if it is a text and not empty."""
    try:
        value = msgspec.json.decode(raw or b"null")
    except (msgspec.DecodeError, RecursionError):
        return None
    found = value.get(field) if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None
