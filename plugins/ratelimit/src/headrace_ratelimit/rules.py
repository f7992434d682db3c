"""Which limits a request must fit into."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import quote

import msgspec

from headrace.exchange import ANONYMOUS
from headrace.ledger import Kind, Limit
from headrace.limits import RATES, RateLimits, Wall, concerns, name_of

from .answers import Told, told
from .config import SPANS, LimitConfig, Subject

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Principal

KEPT = 4096
"""Callers whose limits are remembered."""


class Part(NamedTuple):
    """One number of a rule."""

    name: str
    """The configuration's own: `tokens_per_minute`."""
    kind: Kind
    most: int
    seconds: float


Found = tuple[str, Part, Mapping[str, str]]


class Applied(msgspec.Struct, frozen=True):
    """All that one request must fit into."""

    limits: tuple[Limit, ...]
    units: tuple[str, ...]
    """What each of them counts: `requests`, `tokens` or `concurrent`."""
    names: tuple[str, ...]
    """The configuration's own."""
    of: tuple[Mapping[str, str], ...]
    """Whose use each of them counts."""
    tokens: int | None
    """The smallest limit on tokens; None if there is none."""
    places: tuple[tuple[int, ...], ...]
    """Which of the limits are of requests, and which of tokens."""
    token_places: tuple[int, ...]
    """Which of the limits are of tokens."""
    told: tuple[Told, ...]
    """What answers say of each."""

    def amounts(self, tokens: int) -> list[int]:
        """What a request of so many tokens needs of each limit."""
        amounts = [1] * len(self.units)
        for place in self.token_places:
            amounts[place] = tokens
        return amounts


NOTHING = Applied((), (), (), (), None, (), (), ())


class Rules:
    """The configured rules, prepared; those of single callers come with them."""

    def __init__(self, rules: Sequence[LimitConfig]) -> None:
        self._rules = [(rule, name_of(rule), _parts(rule)) for rule in rules]
        self._by_address = any("address" in rule.per for rule in rules)
        self._known: OrderedDict[tuple[str, str, str], tuple[Principal, Applied]] = OrderedDict()

    def of(self, exchange: Exchange) -> Applied:
        """Everything that applies to this request."""
        who, model = exchange.principal or ANONYMOUS, exchange.model.name if exchange.model else ""
        return self.applying(who, model, exchange.client if self._by_address else "")

    def standing_for(self, who: Principal, models: Iterable[str]) -> dict[Limit, tuple[str, str, Mapping[str, str]]]:
        """The limits of a caller, whatever model they ask for, but for those per address: unit, name and whose."""
        found = {}
        for model in models:
            applied = self.applying(who, model, "")
            for limit, unit, name, of in zip(applied.limits, applied.units, applied.names, applied.of, strict=True):
                if "address" not in of:
                    found[limit] = unit, name, of
        return found

    def applying(self, who: Principal, model: str, address: str) -> Applied:
        """Everything that applies to requests of this caller for this model, from this address."""
        if not self._rules and who.limits is None:
            return NOTHING
        known = self._known.get((who.id, model, address))
        if known is not None and known[0] is who:
            return known[1]
        applied = _applied(self._find(who, model, address))
        self._known[who.id, model, address] = who, applied
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return applied

    def _find(self, who: Principal, model: str, address: str) -> Iterator[Found]:
        """Each number that applies, with the key under which it is counted, and of whom."""
        all_of = {"key": who.id, "team": who.team or "", "model": model, "address": network(address)}
        for rule, name, parts in self._rules:
            if concerns(rule, who, model):
                of: Mapping[str, str] = {each: all_of[each] for each in rule.per}
                subject = "/".join(quote(each, safe="") for each in of.values())
                yield from ((f"ratelimit:{name}:{subject}:{part.name}", part, of) for part in parts)
        if who.limits is not None:
            own: Mapping[str, str] = {"key": who.id}
            yield from ((f"ratelimit:own:{who.id}:{part.name}", part, own) for part in _parts(who.limits))


def _applied(found: Iterator[Found]) -> Applied:
    parts = list(found)
    limits = tuple(Limit(key, part.kind, part.most, part.seconds) for key, part, _ in parts)
    units = tuple(part.name.partition("_per_")[0] for _, part, _ in parts)
    tokens = [limit.most for limit, unit in zip(limits, units, strict=True) if unit == "tokens"]
    names, of = tuple(part.name for _, part, _ in parts), tuple(of for *_, of in parts)
    places = [tuple(place for place, its in enumerate(units) if its == unit) for unit in ("requests", "tokens")]
    said = tuple(told(limit, unit) for limit, unit in zip(limits, units, strict=True))
    smallest = min(tokens, default=None)
    return Applied(limits, units, names, of, smallest, tuple(filter(None, places)), places[1], said)


def _parts(limits: RateLimits) -> list[Part]:
    parts = []
    for name in RATES:
        most = getattr(limits, name)
        if most is not None:
            _, _, span = name.partition("_per_")
            parts.append(Part(name, "window" if span else "open", most, SPANS.get(span, 0.0)))
    return parts


def network(address: str) -> str:
    """Whose address it is: of IPv6 the first 64 bits, for the rest is the caller's to choose."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), 64), strict=False).network_address)


def walls(rules: Sequence[LimitConfig]) -> list[Wall]:
    """What a server in front can count of them."""
    per: dict[tuple[Subject, ...], Literal["key", "address"]] = {("key",): "key", ("address",): "address"}
    return [
        Wall(per=per[rule.per], requests_per_minute=rule.requests_per_minute, concurrent=rule.concurrent)
        for rule in rules
        if rule.per in per and not (rule.keys or rule.teams or rule.models)
        if rule.requests_per_minute or rule.concurrent
    ]
