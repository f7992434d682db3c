"""Whom a request may ask, and in which order, when some backends are in trouble."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.errors import Unavailable

from .circuit import Circuit

if TYPE_CHECKING:
    from headrace.exchange import Target


def arranged(
    targets: Sequence[Target], troubled: Mapping[str, Circuit], now: float, chance: random.Random
) -> tuple[list[Target], list[Target]]:
    """Those that may be asked, and those that may not.

    One that gets less than its share comes after the others as often as it takes; one that has asked for a pause
    comes last, whoever ends it first before others.
    """
    ready: list[Target] = []
    later: list[Target] = []
    paused: list[tuple[float, int, Target]] = []
    out: list[Target] = []
    for target in targets:
        circuit = troubled.get(target.name)
        if circuit is None:
            ready.append(target)
        elif not circuit.has_room(now):
            out.append(target)
        else:
            share = circuit.pace.share(now) if circuit.state == "closed" else 1.0
            if share >= 1.0 or share > chance.random():
                ready.append(target)
            elif share:
                later.append(target)
            else:
                paused.append((circuit.pace.paused_until, len(paused), target))
    if paused:
        later += [target for _, _, target in sorted(paused)]
    return (ready + later if later else ready), out


def refusal(model: str, seconds: float) -> Unavailable:
    """What a caller is told if nobody may be asked for so many seconds."""
    wait = max(1, math.ceil(seconds))
    error = Unavailable(
        f"No backend of the model {model!r} can answer now: each has failed too often. Try again in {wait} s.",
        code="circuit_open",
        headers={"Retry-After": str(wait)},
    )
    error.reached = False
    return error
