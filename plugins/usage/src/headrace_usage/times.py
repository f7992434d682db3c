"""Spans of time as people write them, and moments in milliseconds since the epoch, UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime

HOUR = 3_600_000
"""Milliseconds."""
DAY = 24 * HOUR
UNITS = {"s": 1000, "m": 60_000, "h": HOUR, "d": DAY, "w": 7 * DAY}
LONGEST = 36_500 * DAY
_SPAN = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)


def span(text: str) -> int:
    """`90d`, `12h`, …: a number and a unit (s, m, h, d, w), in milliseconds. Raises ValueError."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no time: write a number and s, m, h, d or w, for instance 90d")
    found = int(match[1]) * UNITS[match[2]]
    if not 0 < found <= LONGEST:
        raise ValueError(f"{text!r} is not between one second and 100 years")
    return found


def moment(text: str, now: int) -> int:
    """`7d` (so long ago), or a date or time in ISO 8601 (UTC unless it says otherwise). Raises ValueError.

    What is a day ago or longer begins at a full hour: then summaries can answer.
    """
    if _SPAN.fullmatch(text.strip()):
        back = span(text)
        return (now - back) // HOUR * HOUR if back >= DAY else now - back
    try:
        found = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no time: write 7d, 2027-01-31 or 2027-01-31T18:00:00Z") from None
    return max(0, round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000))


def written(milliseconds: int) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return _iso(milliseconds, "milliseconds")


def to_the_second(milliseconds: int) -> str:
    """ISO 8601 in UTC, to the second."""
    return _iso(milliseconds, "seconds")


def _iso(milliseconds: int, precision: str) -> str:
    whole = datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)
    return whole.isoformat(timespec=precision).replace("+00:00", "Z")


def day_of(number: int) -> str:
    """A day by its number since the epoch: `2027-01-31`."""
    return to_the_second(number * DAY)[:10]


def hour_of(number: int) -> str:
    """An hour by its number since the epoch: `2027-01-31T18:00Z`."""
    return to_the_second(number * HOUR)[:16] + "Z"
