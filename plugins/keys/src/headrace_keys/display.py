"""Keys as tables and JSON on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from headrace.tables import table

SHORT = {
    "requests_per_minute": "rpm",
    "requests_per_hour": "rph",
    "requests_per_day": "rpd",
    "tokens_per_minute": "tpm",
    "tokens_per_hour": "tph",
    "tokens_per_day": "tpd",
    "tokens_per_month": "tokens/month",
    "cost_per_day": "cost/day",
    "cost_per_month": "cost/month",
}
OPTIONAL = ("owner", "team", "endpoints", "limits", "budget")
"""Columns that are shown only if one of the keys has something in them."""


def json_text(value: Any) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def lines(described: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of keys; times are UTC."""
    rows = [_row(each) for each in described]
    empty = [name for name in OPTIONAL if not any(row[name] for row in rows)]
    return table([{name: value for name, value in row.items() if name not in empty} for row in rows])


def _row(key: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: key[name] for name in ("id", "name", "role")},
        **{name: key[name] or "" for name in ("owner", "team")},
        "models": "all" if key["models"] is None else key["models"],
        "endpoints": key["endpoints"] or "",
        "limits": _numbers(key["limits"]),
        "budget": _numbers(key["budget"]),
        "created": key["created"][:10],
        "expires": key["expires"][:16].replace("T", " ") if key["expires"] else "never",
        "state": key["state"],
    }


def _numbers(numbers: Mapping[str, float] | None) -> str:
    return " ".join(f"{SHORT.get(name, name)}={value:g}" for name, value in (numbers or {}).items())
