"""How the workers stand, together: for the command and for administrators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .counts import Counts
from .marks import Standing


def report(standings: Sequence[Standing]) -> dict[str, Any]:
    """Sums over all workers, by model."""
    models: dict[str, Counts] = {}
    for standing in standings:
        for name, counts in standing.models.items():
            total = models.setdefault(name, Counts())
            for field in Counts.__struct_fields__:
                setattr(total, field, getattr(total, field) + getattr(counts, field))
    servers = {standing.server for standing in standings}
    return {
        "object": "cache.stats",
        "workers": len(standings),
        "memory_bytes": sum(standing.memory_bytes or 0 for standing in standings),
        "server": None if servers <= {None} else "up" if servers == {"up"} else "down",
        "models": {name: msgspec.to_builtins(models[name]) for name in sorted(models)},
    }


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each model, for people."""
    return [
        {
            "model": name,
            "hits": each["hits"],
            "joined": each["joined"],
            "misses": each["misses"],
            "bypasses": each["bypasses"],
            "hit rate": _rate(each),
            "entries": each["entries"],
            "bytes": each["bytes"],
            "evictions": each["evictions"],
            "errors": each["errors"],
        }
        for name, each in found["models"].items()
    ]


def _rate(counts: dict[str, int]) -> str:
    """Of the requests that are for the cache."""
    answered = counts["hits"] + counts["joined"]
    asked = answered + counts["misses"]
    return f"{100 * answered / asked:.1f} %" if asked else "-"
