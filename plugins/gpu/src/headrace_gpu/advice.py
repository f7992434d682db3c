"""What would fit where something does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from .devices import Device
from .plan import Ask, Plan, best, evaluate
from .quantization import NONE, named
from .units import BadPlan, gib
from .weights import possible_tp

MOST = 64
"""Devices that are thought of."""
IN_ONE_MACHINE = 8
SMALLER = ("fp8", "awq")
"""Quantizations to propose, the better one first."""
SIZES = (16, 24, 32, 40, 48, 80, 96, 141, 180)
"""GiB."""


class Fewest(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest number of devices of one kind that a model fits on."""

    device: str
    count: int
    tp: int
    pp: int
    context: int


def fewest(ask: Ask, device: Device, *, pipeline: bool = True) -> Fewest | None:
    """How many of a device it takes; None: not even `MOST` are enough. Without `pipeline` there is but one stage."""
    whole = msgspec.structs.replace(device, free=device.total)
    sizes = possible_tp(ask.shape, ask.quantization, IN_ONE_MACHINE)
    for count in range(1, MOST + 1):
        for tp in sorted((size for size in sizes if count % size == 0), reverse=True):
            pp = count // tp
            if pp > (min(ask.shape.layers, 16) if pipeline else 1):
                continue
            plan = evaluate(ask, [whole] * count, tp, pp)
            if plan.fits:
                return Fewest(device=device.label, count=count, tp=tp, pp=pp, context=plan.context)
    return None


def sizes(ask: Ask) -> list[Fewest]:
    """How many devices of each of the usual sizes it takes."""
    found = []
    for size in SIZES:
        total = size * 1024**3
        one = fewest(ask, Device(label=f"{size}GiB", total=total, free=total))
        if one is not None:
            found.append(one)
    return found


def advice(ask: Ask, plan: Plan, devices: Sequence[Device], tp: int | None, pp: int) -> list[str]:
    """What would fit: more of the same devices, a quantization, a smaller cache, less context."""
    return [
        *_smaller_cache(ask, plan, devices, tp, pp),
        *_less(ask, plan, devices, tp, pp),
        *_quantized(ask, devices, tp, pp),
        *_more(ask, devices),
    ]


def _smaller_cache(ask: Ask, plan: Plan, devices: Sequence[Device], tp: int | None, pp: int) -> Iterator[str]:
    if ask.kv_bytes > 1 and min(part.cache for part in plan.parts) > 0:
        found = _tried(msgspec.structs.replace(ask, kv_bytes=1), devices, tp, pp)
        if found is not None:
            yield "an fp8 KV cache would: --kv-dtype fp8"


def _less(ask: Ask, plan: Plan, devices: Sequence[Device], tp: int | None, pp: int) -> Iterator[str]:
    if plan.context >= 256 and plan.context < ask.wanted:
        yield f"less context would: --context {plan.context}"
    if ask.sequences > 1 and plan.at_once(ask.wanted) >= 1:
        yield f"fewer sequences at once would: --sequences {plan.at_once(ask.wanted)}"


def _quantized(ask: Ask, devices: Sequence[Device], tp: int | None, pp: int) -> Iterator[str]:
    if ask.quantization != NONE:
        return
    for name in SMALLER:
        smaller = msgspec.structs.replace(ask, quantization=named(name), stored=None)
        found = _tried(smaller, devices, tp, pp)
        if found is not None:
            weights = gib(max(part.weights for part in found.parts))
            yield (
                f"quantized it would: --quantization {name} ({weights} of weights on each of {found.used}, "
                f"context up to {found.context:,})"
            )
            return


def _more(ask: Ask, devices: Sequence[Device]) -> Iterator[str]:
    for device in {device.label: device for device in devices}.values():
        found = fewest(ask, device)
        if found is None:
            yield f"not even {MOST} x {device.label} would"
        else:
            yield _said(found)
            alone = fewest(ask, device, pipeline=False) if found.pp > 1 else None
            if alone is not None:
                yield f"{_said(alone)}, without a pipeline"


def _said(found: Fewest) -> str:
    pipeline = f" --pp {found.pp}" if found.pp > 1 else ""
    return f"{found.count} x {found.device} would: --tp {found.tp}{pipeline} (context up to {found.context:,})"


def _tried(ask: Ask, devices: Sequence[Device], tp: int | None, pp: int) -> Plan | None:
    try:
        found = best(ask, devices, tp, pp)
    except BadPlan:  # groups of weights that cannot be split like this
        return None
    return found if found.fits else None
