"""Plans for known models on thought-of devices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace_gpu.advice import advice, fewest, sizes
from headrace_gpu.cache import layout
from headrace_gpu.devices import Device, parse_devices
from headrace_gpu.model import load
from headrace_gpu.overhead import overhead
from headrace_gpu.plan import best, shortage
from headrace_gpu.quantization import named
from headrace_gpu.units import GIB, BadPlan
from headrace_gpu.weights import bytes_per_stage, possible_tp

BOTH = "32GiB,24GiB"


def test_llama_70b_does_not_fit_on_32_and_24_gib(planning: Any) -> None:
    assert not planning("llama-3.1-70b", BOTH).fits


def test_quantized_to_4_bits_it_does(planning: Any) -> None:
    plan = planning("llama-3.1-70b", BOTH, "awq")
    assert (plan.fits, plan.tp) == (True, 2)
    assert 4096 < plan.context < 20_000


def test_the_smaller_device_decides(planning: Any) -> None:
    mixed, equal = planning("llama-3.1-70b", BOTH, "awq"), planning("llama-3.1-70b", "24GiB,24GiB", "awq")
    assert mixed.blocks == equal.blocks


def test_it_says_what_would_fit(asking: Any) -> None:
    ask, devices = asking("llama-3.1-70b"), parse_devices("2x24GiB")
    found = advice(ask, best(ask, devices), devices, None, 1)
    assert found[0].startswith("quantized it would: --quantization awq (18.5 GiB of weights on each of 2")
    assert any(each.startswith("8 x 24GiB would: --tp 8") for each in found)


def test_devices_it_says_would_do_do(asking: Any) -> None:
    ask = asking("llama-3.1-70b")
    device = parse_devices("24GiB")[0]
    found = fewest(ask, device)
    assert found is not None
    assert best(ask, [device] * found.count, found.tp, found.pp).fits


def test_one_fewer_would_not(asking: Any) -> None:
    ask = asking("llama-3.1-70b")
    device = parse_devices("24GiB")[0]
    found = fewest(ask, device)
    assert found is not None
    fewer = found.count - 1
    splits = [(tp, fewer // tp) for tp in possible_tp(ask.shape, ask.quantization, fewer) if fewer % tp == 0]
    assert not any(best(ask, [device] * fewer, tp, pp).fits for tp, pp in splits)


def test_less_context_is_proposed_and_fits(asking: Any) -> None:
    ask, devices = asking("llama-3.1-8b", context=131072), parse_devices("24GiB")
    plan = best(ask, devices)
    tip = next(each for each in advice(ask, plan, devices, None, 1) if each.startswith("less context"))
    context = int(tip.rpartition(" ")[2])
    assert best(msgspec.structs.replace(ask, context=context), devices).fits


def test_a_smaller_cache_is_proposed_where_it_is_enough(asking: Any) -> None:
    ask, devices = asking("llama-3.1-8b", context=60_000), parse_devices("24GiB")
    assert "an fp8 KV cache would: --kv-dtype fp8" in advice(ask, best(ask, devices), devices, None, 1)


def test_fewer_sequences_are_proposed_and_fit(asking: Any) -> None:
    ask, devices = asking("llama-3.1-8b", context=16384, sequences=8), parse_devices("24GiB")
    tip = next(each for each in advice(ask, best(ask, devices), devices, None, 1) if each.startswith("fewer"))
    fewer = int(tip.rpartition(" ")[2])
    assert best(msgspec.structs.replace(ask, sequences=fewer), devices).fits


def test_more_devices_than_needed_are_left_alone(planning: Any) -> None:
    assert planning("llama-3.1-8b", "8xh100").tp == 1


def test_sizes_that_do_not_divide_the_heads_are_named(planning: Any) -> None:
    with pytest.raises(BadPlan, match="3 does not divide the 64 attention heads; what can be: 1, 2, 4, 8, 16, 32, 64"):
        planning("llama-3.1-70b", "4x80GiB", tp=3)


def test_kv_heads_that_cannot_be_shared_are_named(planning: Any) -> None:
    with pytest.raises(BadPlan, match="4 KV heads cannot be shared by 7 devices"):
        planning("qwen2.5-7b", "8x80GiB", tp=7)


def test_groups_of_quantized_weights_are_not_cut(planning: Any) -> None:
    with pytest.raises(BadPlan, match=r"29568 / 2 is no multiple of the 128 weights"):
        planning("qwen2.5-72b", "2x48GiB", "awq", tp=2)


def test_more_devices_than_there_are_are_refused(planning: Any) -> None:
    with pytest.raises(BadPlan, match="takes 4 devices, and there are 2"):
        planning("llama-3.1-8b", "2x24GiB", tp=2, pp=2)


def test_more_context_than_the_model_can_take_is_refused(planning: Any) -> None:
    with pytest.raises(BadPlan, match="can take 32768 tokens"):
        planning("qwen2.5-7b", "h100", context=40_000)


def test_kv_heads_are_shared_out_and_then_kept_several_times() -> None:
    shape = load("llama-3.1-70b").shape
    assert [layout(shape, 2, tp, 1, 2048).stage_bytes[0] for tp in (1, 8, 16)] == [5_242_880, 655_360, 655_360]


def test_the_latent_of_deepseek_is_kept_everywhere() -> None:
    shape = load("deepseek-v3").shape
    assert layout(shape, 2, 1, 1, 2048).stage_bytes == layout(shape, 2, 8, 1, 2048).stage_bytes


def test_gemma_3_has_groups_of_layers_as_vllm_forms_them() -> None:
    found = layout(load("gemma-3-1b").shape, 2, 1, 1, 2048)
    assert (found.full, found.sliding, found.stage_bytes[0]) == (1, 6, 4 * 16 * 1024)


def test_sliding_layers_keep_no_more_than_their_window() -> None:
    found = layout(load("gpt-oss-20b").shape, 2, 1, 1, 2048)
    assert found.blocks(131_072) - found.blocks(65_536) == 4096


def test_a_pipeline_deals_what_is_left_over_to_the_middle() -> None:
    assert [len(each) for each in load("llama-3.1-405b").shape.stages(4)] == [31, 32, 32, 31]


def test_weights_of_a_pipeline_add_up(asking: Any) -> None:
    ask = asking("llama-3.1-70b")
    whole = bytes_per_stage(ask.shape, ask.quantization, 2, 1, 1)[0]
    assert sum(bytes_per_stage(ask.shape, ask.quantization, 2, 1, 4)) == whole


def test_memory_that_others_use_is_not_planned_with(asking: Any) -> None:
    taken = Device(label="24GiB", total=24 * GIB, free=20 * GIB, index=0, uuid="GPU-0")
    plan = best(asking("llama-3.2-3b"), [taken])
    assert plan.utilization == 0.82
    assert plan.parts[0].budget <= taken.free


def test_measured_overhead_takes_the_place_of_the_estimate(planning: Any) -> None:
    plan = planning("llama-3.1-8b", "24GiB", overhead=5 * GIB)
    assert plan.parts[0].overhead.total == 5 * GIB


def test_what_is_short_is_said(asking: Any) -> None:
    ask = asking("llama-3.1-8b")
    assert "of weights" in shortage(best(ask, parse_devices("16GiB")), ask)
    ask = asking("llama-3.1-8b", context=131072)
    assert shortage(best(ask, parse_devices("24GiB")), ask).startswith("24GiB: a KV cache for 131,072 tokens takes 16.")


def test_sizes_of_devices_that_would_do_are_told(asking: Any) -> None:
    found = {each.device: each.count for each in sizes(asking("llama-3.1-70b"))}
    assert (found["80GiB"], found["180GiB"]) == (2, 1)


MEASURED = [
    *[("llama-3.1-8b", 1.89), ("qwen3-8b", 2.21), ("qwen2.5-7b", 2.25), ("gemma-2-9b", 3.65), ("gemma-2-27b", 3.66)],
    *[("qwen3-30b-a3b", 2.68)],
]
"""GiB of activations that vLLM 0.19 has logged on an H100, with 8,192 tokens and 1,024 sequences at a time."""


@pytest.mark.parametrize(("name", "measured"), MEASURED)
def test_activations_are_estimated_as_they_were_measured(name: str, measured: float) -> None:
    found = overhead(
        load(name).shape, memory=80 * GIB, tp=1, last=True, sequences=1024, batched=8192, eager=False
    ).activations
    assert abs(found / GIB - measured) < 0.3


def test_quantized_kinds_take_less_in_order(asking: Any) -> None:
    shape = load("llama-3.1-8b").shape
    found = [bytes_per_stage(shape, named(name), 2, 1, 1)[0] for name in ("none", "fp8", "gptq", "awq", "Q2_K")]
    assert found == sorted(found, reverse=True)
