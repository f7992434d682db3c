"""Who a key belongs to, what it may do, and how its limits stand: what `GET /v1/usage` tells its owner."""

from __future__ import annotations

from typing import Any

import msgspec

from .dialects import OPENAI_ENDPOINTS
from .exchange import ANONYMOUS, Exchange
from .gateway import Gateway
from .pipeline import unknown_caller
from .routes import described
from .tables import table

LABELS = ("id", "name", "owner", "team", "role", "models", "endpoints")


async def whoami(gateway: Gateway, key: str | None) -> dict[str, Any]:
    """What the gateway knows of whoever shows this key; of a stranger if it is None.

    Raises:
        GatewayError: nobody knows the key, or it is not in force.
    """
    headers = [(b"authorization", f"Bearer {key}".encode("utf-8", "surrogateescape"))] if key else []
    scope = {"headers": headers, "method": "POST", "path": "/", "client": ("127.0.0.1", 0)}
    principal = await gateway.hooks.authenticate(Exchange(id="whoami", endpoint=_ANY, scope=scope))
    if principal is None:
        if key or not gateway.config.server.anonymous:
            raise unknown_caller()
        principal = ANONYMOUS
    limits = msgspec.to_builtins(await gateway.hooks.standing(principal))
    return {**described(principal), "limits": limits}


_ANY = next(iter(OPENAI_ENDPOINTS.values()))


def lines_of(found: dict[str, Any]) -> list[str]:
    """For people."""
    told = {name: found[name] for name in LABELS if found[name] not in (None, "")}
    lines = [f"{name:<10} {_words(value)}" for name, value in told.items()]
    rows = [{name: _shown(value) for name, value in each.items()} for each in found["limits"]]
    return [*lines, *([""] if rows else []), *table(rows)]


def _shown(value: Any) -> str:
    """A column of a limit."""
    if isinstance(value, dict):
        return " ".join(value.values()) or "everybody"
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)


def _words(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
