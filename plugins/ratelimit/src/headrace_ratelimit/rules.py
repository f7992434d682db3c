"""Which limits a request must fit into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .config import LIMITS, SPANS, LimitConfig
from .ledger import Kind, Want

if TYPE_CHECKING:
    from headrace.exchange import Exchange


class Part(NamedTuple):
    """One number of a rule."""

    kind: Kind
    limit: int
    seconds: float
    name: str
    """The configuration's own: `tokens_per_minute`."""


class Rules:
    """The configured rules, prepared."""

    def __init__(self, limits: Sequence[LimitConfig]) -> None:
        self._rules = [(number, limit, _parts(limit)) for number, limit in enumerate(limits)]
        self.count_tokens = any(part.kind == "tokens" for _, _, parts in self._rules for part in parts)

    def of(self, exchange: Exchange, tokens: int) -> list[Want]:
        """Everything that applies to this request, which may cost so many tokens."""
        found = []
        for number, limit, parts in self._rules:
            subject = _subject(limit, exchange)
            if subject is None:
                continue
            for part in parts:
                amount = tokens if part.kind == "tokens" else 1
                key = f"{number}\0{part.name}\0{subject}"
                found.append(Want(key, part.kind, part.limit, amount, part.seconds))
        return found


def _parts(limit: LimitConfig) -> list[Part]:
    parts = []
    for name in LIMITS:
        value = getattr(limit, name)
        if value is not None:
            kind, _, span = name.partition("_per_")
            parts.append(Part(kind, value, SPANS.get(span, 0.0), name))  # type: ignore[arg-type]
    return parts


def _subject(limit: LimitConfig, exchange: Exchange) -> str | None:
    """Whose use is counted; None if the rule does not apply."""
    who, model = exchange.principal, exchange.model.name if exchange.model else ""
    identifier, team = (who.id, who.team) if who is not None else ("", None)
    if (
        (limit.keys and identifier not in limit.keys)
        or (limit.teams and team not in limit.teams)
        or (limit.models and model not in limit.models)
        or ("team" in limit.per and team is None)
    ):
        return None
    of = {"key": identifier, "team": team or "", "model": model, "address": exchange.client}
    return "\0".join(of[name] for name in limit.per)
