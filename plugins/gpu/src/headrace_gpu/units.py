"""Amounts as people write them: `24GiB`, `70B`."""

from __future__ import annotations

import re
from decimal import Decimal

from headrace.errors import HeadraceError

GIB = 1024**3
MIB = 1024**2

_BYTES = {"MIB": MIB, "GIB": GIB, "TIB": 1024**4, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)


class BadPlan(HeadraceError):
    """What was asked for cannot be planned: a wrong amount, a model that is not understood, sizes that do not go
    together. The message names the field."""


def parse_bytes(text: str) -> int:
    """Bytes of `24GiB`, `512 MiB`, `80GB`. Between 1 MB and 100 TiB.

    Raises:
        BadPlan: it is something else; a unit is needed, as 24 GB and 24 GiB differ by 7 %.
    """
    number, unit = _split(text, "a size such as 24GiB or 80GB")
    if unit.upper() not in _BYTES:
        raise BadPlan(f"{text!r}: which unit? Write MiB, GiB or TiB (1024), or MB, GB or TB (1000)")
    amount = int(number * _BYTES[unit.upper()])
    if not 10**6 <= amount <= 100 * 1024**4:
        raise BadPlan(f"{text!r} is no size of memory: from 1MB to 100TiB")
    return amount


def parse_count(text: str) -> int:
    """A number such as `70B`, `8.03B`, `500M` or `70553706496`, from 1 to 10^15.

    Raises:
        BadPlan: it is something else.
    """
    number, unit = _split(text, "a number such as 70B, 500M or 8030261248")
    if unit.upper() not in _COUNTS:
        raise BadPlan(f"{text!r}: which unit? Write M (million), B (billion) or T, or the whole number")
    amount = int(number * _COUNTS[unit.upper()])
    if not 1 <= amount <= 10**15:
        raise BadPlan(f"{text!r} is no number of parameters")
    return amount


def gib(amount: int) -> str:
    """`12.3 GiB`; of a negative amount the sign stays."""
    return f"{amount / GIB:.1f} GiB"


def ceil_div(amount: int, by: int) -> int:
    """Rounded up."""
    return -(-amount // by)


def _split(text: str, wanted: str) -> tuple[Decimal, str]:
    match = _AMOUNT.fullmatch(text.strip()) if len(text) <= 64 else None
    if match is None:
        raise BadPlan(f"{text[:64]!r} is not {wanted}")
    return Decimal(match[1]), match[2]
