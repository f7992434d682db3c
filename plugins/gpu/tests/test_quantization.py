"""What quantized matrices take, by the numbers of their formats."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_gpu.quantization import configured, named
from headrace_gpu.units import BadPlan

MILLION = 1024 * 1024
"""Weights of a matrix of 1024 x 1024."""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("fp8", MILLION + 4 * 1024),
        ("int8", MILLION + 4 * 1024),
        ("awq", MILLION // 2 + 8192 * 2 + 8192 // 2),
        ("gptq", MILLION // 2 + 8192 * 2 + 8192 // 2 + 4 * 1024),
        ("nf4", MILLION // 2 + MILLION // 64 * 4),
        ("mxfp4", MILLION // 2 + MILLION // 32),
        ("nvfp4", MILLION // 2 + MILLION // 16),
        ("Q8_0", 1114217),
    ],
)
def test_a_matrix_takes_its_weights_and_their_scales(name: str, found: int) -> None:
    assert named(name).bytes_of(1024, 1024) == found


def test_smaller_groups_take_more() -> None:
    assert named("awq", 32).bytes_of(1024, 1024) > named("awq").bytes_of(1024, 1024)


@pytest.mark.parametrize(
    ("config", "name", "bits", "group"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq", 4, 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8, 0),
        ({"quant_method": "fp8"}, "fp8", 8, 0),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8, 128),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4", 4, 64),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 8, 0),
        ({"quant_method": "mxfp4"}, "mxfp4", 4, 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4, 16),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8, 0),
    ],
)
def test_what_config_json_says_is_understood(config: Any, name: str, bits: int, group: int) -> None:
    found = configured(config, 4)
    assert (found.name, found.bits, found.group) == (name, bits, group)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ({"num_bits": 8, "type": "float"}, "fp8"),
        ({"num_bits": 8, "type": "int"}, "int8"),
        ({"num_bits": 4, "type": "int", "group_size": 128}, "w4a16"),
        ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4"),
    ],
)
def test_compressed_tensors_are_understood(weights: Any, name: str) -> None:
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    assert configured(config, 4).name == name


def test_double_quantized_scales_take_less() -> None:
    once = configured({"quant_method": "bitsandbytes"}, 4)
    twice = configured({"quant_method": "bitsandbytes", "bnb_4bit_use_double_quant": True}, 4)
    assert twice.bytes_of(1024, 1024) < once.bytes_of(1024, 1024)


@pytest.mark.parametrize(
    ("names", "covers"),
    [
        (None, True),
        (["lm_head"], True),
        (["re:.*self_attn.*"], False),
        (["model.layers.0.self_attn.q_proj"], True),
        ([f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)], False),
    ],
)
def test_attention_that_is_left_as_it_is_is_not_counted_as_quantized(names: Any, covers: bool) -> None:
    assert configured({"quant_method": "awq", "modules_to_not_convert": names}, 4).covers("attention") is covers


@pytest.mark.parametrize("name", ["awq", "fp8", "gptq", "nf4"])
def test_embeddings_and_routers_are_not_quantized(name: str) -> None:
    assert not named(name).covers("embedding")
    assert not named(name).covers("router")


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadPlan, match=r"'magic' is not known; there are: none, fp8, .*Q4_K_M"):
        named("magic")


def test_groups_go_with_awq_and_gptq_alone() -> None:
    with pytest.raises(BadPlan, match="not with fp8"):
        named("fp8", 64)
