"""What holds for every model and every set of devices."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_gpu.devices import Device
from headrace_gpu.known import MODELS
from headrace_gpu.model import load
from headrace_gpu.plan import Ask, best, evaluate
from headrace_gpu.quantization import named
from headrace_gpu.units import GIB
from headrace_gpu.weights import bytes_per_stage, possible_tp

SHAPES = {name: load(name) for name in MODELS}
QUANTIZATIONS = st.sampled_from(["none", "fp8", "int8", "awq", "gptq", "nf4", "nvfp4", "Q4_K_M"])
MEMORY = st.integers(1 * GIB, 200 * GIB)
FEW = settings(max_examples=40, deadline=None)


def of(memory: int) -> Device:
    return Device(label="d", total=memory, free=memory)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    model = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    limit = model.shape.max_context or 1 << 20
    return Ask(
        shape=model.shape,
        quantization=named(draw(QUANTIZATIONS)),
        kv_bytes=draw(st.sampled_from([1, 2])),
        utilization=draw(st.floats(0.05, 1.0)),
        context=draw(st.none() | st.integers(1, limit)),
        sequences=draw(st.integers(1, 300)),
        slots=None,
        eager=draw(st.booleans()),
    )


@FEW
@given(asks(), st.lists(MEMORY, min_size=1, max_size=8), st.integers(0, 100 * GIB), st.data())
def test_more_memory_never_fits_less(ask: Ask, memory: list[int], more: int, data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(memory) - 1))
    larger = [each + more * (number == which) for number, each in enumerate(memory)]
    fitted = best(ask, [of(each) for each in memory]).fits
    assert not fitted or best(ask, [of(each) for each in larger]).fits


@FEW
@given(asks(), st.lists(MEMORY, min_size=1, max_size=8), MEMORY)
def test_another_device_never_fits_less(ask: Ask, memory: list[int], another: int) -> None:
    fitted = best(ask, [of(each) for each in memory]).fits
    assert not fitted or best(ask, [of(each) for each in [*memory, another]]).fits


@FEW
@given(asks(), MEMORY, st.integers(1, 1 << 17), st.integers(1, 1 << 17))
def test_more_context_never_needs_less(ask: Ask, memory: int, one: int, other: int) -> None:
    layout = best(ask, [of(memory)]).layout
    assert layout.blocks(min(one, other)) <= layout.blocks(max(one, other))


@FEW
@given(asks(), MEMORY)
def test_what_fits_with_more_context_or_sequences_fits_with_less(ask: Ask, memory: int) -> None:
    if best(ask, [of(memory)]).fits:
        fewer = msgspec.structs.replace(ask, sequences=max(1, ask.sequences // 2))
        shorter = msgspec.structs.replace(ask, context=ask.context and max(1, ask.context // 2))
        assert best(fewer, [of(memory)]).fits
        assert best(shorter, [of(memory)]).fits


@FEW
@given(asks(), MEMORY)
def test_the_longest_context_fits_and_one_token_more_does_not(ask: Ask, memory: int) -> None:
    plan = best(ask, [of(memory)])
    room = plan.blocks // ask.sequences
    assert plan.layout.blocks(plan.context) <= room or plan.context == 0
    assert plan.context == ask.limit or plan.layout.blocks(plan.context + 1) > room


@FEW
@given(asks())
def test_what_is_said_of_sequences_has_room(ask: Ask) -> None:
    plan = best(ask, [of(80 * GIB)])
    if plan.context:
        assert plan.at_once(plan.context) * plan.layout.blocks(plan.context) <= plan.blocks


@FEW
@given(asks(), st.integers(1, 64))
def test_split_weights_are_together_no_less_than_the_whole(ask: Ask, tp: int) -> None:
    whole = bytes_per_stage(ask.shape, ask.quantization, 2, 1, 1)[0]
    if tp in possible_tp(ask.shape, ask.quantization):
        part = bytes_per_stage(ask.shape, ask.quantization, 2, tp, 1)[0]
        assert whole <= tp * part
        assert part <= whole


@FEW
@given(asks(), st.integers(1, 16))
def test_no_stage_of_a_pipeline_has_more_than_the_whole(ask: Ask, pp: int) -> None:
    whole = bytes_per_stage(ask.shape, ask.quantization, 2, 1, 1)[0]
    stages = bytes_per_stage(ask.shape, ask.quantization, 2, 1, pp)
    assert max(stages) <= whole <= sum(stages)


@FEW
@given(asks(), st.lists(MEMORY, min_size=8, max_size=8))
def test_nothing_is_planned_beyond_what_may_be_used(ask: Ask, memory: list[int]) -> None:
    for tp in possible_tp(ask.shape, ask.quantization, 8):
        plan = evaluate(ask, [of(each) for each in memory], tp, 1)
        for part in plan.parts:
            cache = plan.blocks * plan.layout.stage_bytes[part.stage]
            assert not plan.fits or part.weights + part.overhead.total + cache <= part.budget
            assert part.budget <= part.device.total * ask.utilization
