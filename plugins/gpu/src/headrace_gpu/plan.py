"""Whether a model fits on devices, and what is left for its KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from .cache import Layout, layout
from .devices import Device
from .overhead import CONTEXT, Overhead, overhead
from .quantization import Quantization
from .shape import Shape
from .units import GIB, BadPlan, ceil_div, gib
from .weights import absorbed, bytes_per_stage, check_stages, possible_tp, why_not

SHORTEST = 2048
"""Tokens of context that a model must have room for, where nobody asks for any number."""
LONGEST = 10_000_000
"""Tokens that are thought of where a model does not say how many it can take."""
SLOTS = (256, 128, 64, 32, 16, 8)
"""Sequences at a time that are tried, where nobody asks for any number: as many as get `PER_SLOT` tokens each."""
PER_SLOT = 1024
LARGE = 70 * GIB
"""From here on vLLM computes more tokens at once, but not on an A100."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be planned."""

    shape: Shape
    quantization: Quantization
    dtype: int = 2
    """Bytes of a weight that is not quantized, and of activations."""
    kv_bytes: int = 2
    stored: int | None = None
    """Bytes of the weights as they lie in files, all together."""
    utilization: float = 0.9
    context: int | None = None
    sequences: int = 1
    slots: int | None = None
    """vLLM's --max-num-seqs."""
    batched: int | None = None
    """vLLM's --max-num-batched-tokens."""
    eager: bool = False
    overhead: int | None = None
    """Bytes beside weights and cache on each device, in place of the estimate."""

    @property
    def limit(self) -> int:
        """The longest context the model can take."""
        return self.shape.max_context or LONGEST

    @property
    def wanted(self) -> int:
        """Tokens that each sequence must have room for."""
        return self.context or min(SHORTEST, self.limit)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one device's memory, in bytes."""

    device: Device
    stage: int
    budget: int
    weights: int
    overhead: Overhead
    cache: int
    """Left for the KV cache: negative if there is too little for all else."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model would do on some devices."""

    tp: int
    pp: int
    fits: bool
    parts: tuple[Part, ...]
    blocks: int
    """Of KV cache that every device has room for."""
    layout: Layout
    utilization: float
    slots: int
    batched: int
    context: int
    """The longest context, in tokens, that as many sequences as were asked for have room for."""

    @property
    def used(self) -> int:
        """Devices."""
        return self.tp * self.pp

    def at_once(self, context: int) -> int:
        """Sequences of so many tokens that the cache has room for."""
        return self.blocks // self.layout.blocks(context)

    @property
    def tokens(self) -> int | None:
        """Of KV cache; None where sliding layers keep fewer than others."""
        return self.blocks * 16 // self.layout.full if self.layout.full and not self.layout.sliding else None


def best(ask: Ask, devices: Sequence[Device], tp: int | None = None, pp: int = 1) -> Plan:
    """The plan for these devices: with the fewest of them that have room for all the context that is wanted, or else
    for the most.

    Raises:
        BadPlan: the model cannot be split like this, or there are fewer devices.
    """
    _check(ask, devices, tp, pp)
    most = 1 if any(device.divided for device in devices) else len(devices) // pp
    sizes = [tp] if tp else possible_tp(ask.shape, ask.quantization, most)
    plans = [evaluate(ask, devices, size, pp) for size in sizes]
    enough = [plan for plan in plans if plan.fits and plan.context >= (ask.context or ask.limit)]
    return enough[0] if enough else max(plans, key=lambda plan: (plan.fits, plan.context, plan.blocks, _room(plan)))


def evaluate(ask: Ask, devices: Sequence[Device], tp: int, pp: int) -> Plan:
    """The plan for so many of the devices, the largest ones. The model can be split like this."""
    chosen = _largest(devices, tp * pp, ask.utilization)
    tried = None
    for batched, slots in _steps(ask, chosen):
        tried = _evaluate(ask, chosen, tp, pp, batched, slots)
        if tried.fits and tried.at_once(min(PER_SLOT, ask.limit)) >= slots:
            return tried
    assert tried is not None
    return tried


def shortage(plan: Plan, ask: Ask) -> str:
    """Why a plan does not fit."""
    tight = min(plan.parts, key=lambda part: part.cache)
    if tight.cache < 0:
        taken = f"{gib(tight.weights)} of weights and {gib(tight.overhead.total)} beside"
        return f"{tight.device.label}: {taken} are {gib(-tight.cache)} more than the {gib(tight.budget)} it may use"
    need = ask.sequences * plan.layout.blocks(ask.wanted) * max(plan.layout.stage_bytes)
    what = f"{ask.sequences} x {ask.wanted:,} tokens" if ask.sequences > 1 else f"{ask.wanted:,} tokens"
    return f"{tight.device.label}: a KV cache for {what} takes {gib(need)}, and {gib(tight.cache)} are left for it"


def _check(ask: Ask, devices: Sequence[Device], tp: int | None, pp: int) -> None:
    check_stages(ask.shape, pp)
    reason = why_not(ask.shape, ask.quantization, tp) if tp else ""
    if reason:
        possible = ", ".join(map(str, possible_tp(ask.shape, ask.quantization)))
        raise BadPlan(f"--tp {tp}: {reason}; what can be: {possible}")
    if (tp or 1) * pp > len(devices):
        raise BadPlan(f"--tp {tp or 1} x --pp {pp} takes {(tp or 1) * pp} devices, and there are {len(devices)}")
    if (tp or 1) * pp > 1 and any(device.divided for device in devices):
        raise BadPlan("parts of a GPU that is divided (MIG) cannot work together: leave out --tp and --pp")
    if ask.context and ask.shape.max_context and ask.context > ask.shape.max_context:
        raise BadPlan(f"--context {ask.context}: the model can take {ask.shape.max_context} tokens")


def _largest(devices: Sequence[Device], count: int, utilization: float) -> list[Device]:
    """Those that have most to give, in order; equals as they stand."""
    able = sorted(devices, key=lambda device: -min(device.free, device.total * utilization))
    return able[:count]


def _steps(ask: Ask, devices: Sequence[Device]) -> Iterator[tuple[int, int]]:
    """What may be computed at once, tokens and sequences: the most first, and last what takes the least memory."""
    large = all(device.total >= LARGE and not device.label.lower().startswith("a100") for device in devices)
    steps = [ask.batched] if ask.batched else [8192, 2048] if large else [2048]
    slots = [ask.slots] if ask.slots else [size for size in SLOTS if size >= ask.sequences] or [ask.sequences]
    if not ask.slots and slots[-1] > ask.sequences:
        slots.append(ask.sequences)
    for size in slots:
        yield max(steps[0], size), size
    for step in steps[1:]:
        yield max(step, slots[-1]), slots[-1]


def _utilization(ask: Ask, devices: Sequence[Device]) -> float:
    """The part of each device that vLLM may use. It is one number for all of them, and must be free on each of them
    when vLLM starts: where others use some, it is rounded down to hundredths."""
    most = min(_part_free(device) for device in devices)
    return ask.utilization if most >= ask.utilization else int(most * 100) / 100


def _part_free(device: Device) -> float:
    """Of a device that is there: vLLM looks when CUDA has taken its own part already."""
    taken = CONTEXT if device.is_there else 0
    return max(0, device.free - taken) / device.total


def _evaluate(ask: Ask, devices: Sequence[Device], tp: int, pp: int, batched: int, slots: int) -> Plan:
    utilization = _utilization(ask, devices)
    plan = layout(ask.shape, ask.kv_bytes, tp, pp, batched)
    weights = _weights(ask, tp, pp)
    parts = []
    for number, device in enumerate(devices):
        stage = number // tp
        beside = _overhead(ask, device, tp, stage == pp - 1, batched, slots)
        extra = absorbed(ask.shape, ask.quantization, ask.dtype, tp, len(ask.shape.stages(pp)[stage]))
        beside = Overhead(beside.activations + extra, beside.context, beside.graphs)
        budget = int(device.total * utilization)
        left = budget - weights[stage] - beside.total
        parts.append(
            Part(device=device, stage=stage, budget=budget, weights=weights[stage], overhead=beside, cache=left)
        )
    # One block is vLLM's own.
    blocks = max(0, min(part.cache // plan.stage_bytes[part.stage] for part in parts) - 1)
    return Plan(
        tp=tp,
        pp=pp,
        fits=ask.sequences * plan.blocks(ask.wanted) <= blocks and slots >= ask.sequences,
        parts=tuple(parts),
        blocks=blocks,
        layout=plan,
        utilization=utilization,
        slots=slots,
        batched=batched,
        context=plan.longest(blocks // ask.sequences, ask.limit),
    )


def _weights(ask: Ask, tp: int, pp: int) -> list[int]:
    """Bytes on each device of each stage. Where the bytes in files are known, matrices tell only how they are split."""
    found = bytes_per_stage(ask.shape, ask.quantization, ask.dtype, tp, pp)
    if ask.stored is None:
        return found
    whole = bytes_per_stage(ask.shape, ask.quantization, ask.dtype, 1, 1)[0]
    return [ceil_div(each * ask.stored, whole) for each in found]


def _overhead(ask: Ask, device: Device, tp: int, last: bool, batched: int, slots: int) -> Overhead:
    if ask.overhead is not None:
        return Overhead(ask.overhead, 0, 0)
    return overhead(
        ask.shape,
        memory=device.total,
        tp=tp,
        last=last,
        sequences=slots,
        batched=batched,
        eager=ask.eager,
        dtype=ask.dtype,
    )


def _room(plan: Plan) -> int:
    return min(part.cache for part in plan.parts)
