"""What requests of one kind have in common: the beginning of their span, and what they count in. Found by one look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kept import Kept
from .names import Errors, scheme

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome

    from .measuring import Line


class Kind:
    """`error` is what went wrong, if anything did; the others are made by whoever needs them."""

    __slots__ = ("error", "line", "scheme", "template")

    def __init__(self, error: str | None, scheme: str) -> None:
        self.error, self.scheme = error, scheme
        self.template = b""
        self.line: Line | None = None


class Kinds:
    """The kinds there are."""

    def __init__(self, errors: Errors) -> None:
        self._errors = errors
        self._kept: Kept[tuple[object, ...], Kind] = Kept()

    def of(self, exchange: Exchange, outcome: Outcome) -> Kind:
        """Of a request that is over."""
        model, peek, said = exchange.model, exchange.peek, outcome.error
        key = (
            exchange.path,
            model and model.name,
            peek and peek.stream,
            outcome.target,
            outcome.source,
            outcome.status,
            outcome.attempts,
            outcome.delivery_reason,
            outcome.completed,
            outcome.aborted,
            said and (said.code or said.type),
            exchange.header(b"x-forwarded-proto") == "https",
        )
        return self._kept.get(key) or self._kept.keep(key, Kind(self._errors(outcome), scheme(exchange)))
