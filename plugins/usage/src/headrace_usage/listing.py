"""Single requests, a page at a time, the newest first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .entry import DELIVERIES, ENDED
from .money import MILLION
from .schema import COLUMNS, NAME, SERIES
from .selection import Selection, Wrong
from .store import Store
from .times import written

SECONDS = 60.0
ROW = (*(f"r.{name}" for name in COLUMNS if name != "series"), *(f"s.{name}" for name in SERIES))
FIELDS = tuple(name[2:] for name in ROW)
CURSOR = re.compile(r"([0-9]{1,16})-([0-9a-f]{16})-([0-9]{1,16})-([0-9]{1,9})", re.ASCII)


def listed(store: Store, selection: Selection, size: int, after: str | None = None) -> list[dict[str, Any]]:
    """So many rows at most; those that stand after the one with this cursor. Blocks on the disk or the network.

    Raises NotNow, PluginError; Wrong: this is no cursor.
    """
    where, values = selection.conditions("s")
    if after is not None:
        values |= dict(zip((f"after_{name}" for name in NAME), _position(after), strict=True))
        marks = ", ".join(f":after_{name}" for name in NAME)
        where += f" AND ({', '.join(f'r.{name}' for name in NAME)}) < ({marks})"
    with store.explained(), store.reading(SECONDS):
        rows = store.run(
            f"SELECT {', '.join(ROW)} FROM {store.PREFIX}requests AS r "  # noqa: S608
            f"JOIN {store.PREFIX}series AS s ON s.id = r.series "
            f"WHERE r.at >= :since AND r.at < :until AND {where} "
            f"ORDER BY {', '.join(f'r.{name} DESC' for name in NAME)} LIMIT :size",
            since=selection.since,
            until=selection.until,
            size=size,
            **values,
        )
    return list(_shown(rows))


def _position(cursor: str) -> Iterator[int]:
    match = CURSOR.fullmatch(cursor)
    if match is None or int(match[2], 16) >= 2**63:
        raise Wrong("after is the cursor of a row that was listed")
    yield from (int(match[1]), int(match[2], 16), int(match[3]), int(match[4]))


def _shown(rows: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        found = dict(zip(FIELDS, row, strict=True))
        group = f"{found['writer']:016x}-{found['number']}"
        yield {
            "time": written(found["at"]),
            "group": group,
            "try": found["attempt"] or None,
            **{name: found[name] for name in ("request_id", "key", "name", "owner", "team", "role")},
            **{name: found[name] for name in ("model", "asked", "served", "target", "endpoint")},
            "delivery": DELIVERIES[found["delivery"]] or None,
            "stream": bool(found["stream"]),
            "status": found["status"],
            "ended": ENDED[found["ended"]],
            "error": found["error"],
            **{name: found[name] for name in ("input", "cached", "output")},
            "estimated": bool(found["estimated"]),
            "cost": None if found["cost"] is None else found["cost"] / MILLION,
            "latency": found["latency"] / 1e6,
            "ttft": None if found["ttft"] is None else found["ttft"] / 1e6,
            "address": found["address"],
            "cursor": f"{found['at']}-{group}-{found['attempt']}",
        }
