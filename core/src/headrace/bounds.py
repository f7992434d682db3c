"""What a model's configuration says of requests for it: values for what they leave out, and the most they may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .estimate import asked_tokens

if TYPE_CHECKING:
    from .config import Caps
    from .exchange import Exchange

LENGTH = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""What endpoints call the length of an answer. Of others nothing is bound."""
KNOWN: Mapping[str, frozenset[str]] = {
    "messages": frozenset(("temperature", "top_p", "top_k")),
    "responses": frozenset(("temperature", "top_p", "metadata", "user", "parallel_tool_calls")),
}
"""Defaults that make sense to endpoints that are not OpenAI's chats or completions."""
CHANGED = "the model's defaults or caps changed the request"
"""Why the core delivers."""
_number = msgspec.json.Decoder(float).decode


class Bounds:
    """Of one model.

    Args:
        defaults: fields as a chat has them.
        caps: see `headrace.config.Caps`.
    """

    def __init__(self, defaults: Mapping[str, Any], caps: Caps) -> None:
        self._defaults = {name: value for name, value in defaults.items() if name not in LENGTH["chat"]}
        self._length = next((defaults[name] for name in LENGTH["chat"] if name in defaults), None)
        self._most, self._caps = caps.max_tokens, {"temperature": caps.temperature, "n": caps.n}

    def apply(self, exchange: Exchange) -> None:
        """Change a request accordingly. Where it only says nothing of its answer's length, the body stays as it is."""
        names = LENGTH.get(exchange.endpoint.name)
        if names is None:
            return
        if not asked_tokens(exchange):
            given = [each for each in (exchange.answer_limit, self._length, self._most) if each is not None]
            exchange.answer_limit = min(given) if given else None
        changes = {**self._added(exchange), **self._capped(exchange, names)}
        if changes:
            exchange.replace_fields(**changes)
            exchange.inline_reason = exchange.inline_reason or CHANGED

    def _added(self, exchange: Exchange) -> dict[str, Any]:
        known = KNOWN.get(exchange.endpoint.name)
        fields = exchange.fields
        return {
            name: value
            for name, value in self._defaults.items()
            if name not in fields and (known is None or name in known)
        }

    def _capped(self, exchange: Exchange, names: tuple[str, ...]) -> dict[str, Any]:
        caps = {**self._caps, **dict.fromkeys(names, self._most)}
        return {
            name: most
            for name, most in caps.items()
            if most is not None and name in exchange.fields and _above(exchange.fields[name], most)
        }


def _above(raw: msgspec.Raw, most: float) -> bool:
    """Whatever is no number the backend refuses."""
    try:
        return _number(raw) > most
    except msgspec.MsgspecError:
        return False
