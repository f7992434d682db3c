"""Whatever stands in a config.json, the error names the field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_gpu.hfconfig import shape_of
from headrace_gpu.model import load
from headrace_gpu.units import BadPlan
from headrace_gpu.weights import counted

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
MOE = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8}
MLA = {**LLAMA, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
SLIDING = {**LLAMA, "model_type": "mistral", "sliding_window": 128}


@pytest.mark.parametrize("value", [0, -1, 10**40, 1.5, "64", True, [], {}, math.nan, math.inf])
@pytest.mark.parametrize(
    "field",
    [
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
        *("vocab_size", "max_position_embeddings", "head_dim", "sliding_window", "kv_lora_rank"),
    ],
)
def test_a_wrong_number_is_named(field: str, value: Any) -> None:
    with pytest.raises(BadPlan, match=field):
        shape_of({**SLIDING, field: value}, "x")


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_a_missing_number_is_named(field: str) -> None:
    with pytest.raises(BadPlan, match=f"{field} is missing"):
        shape_of({name: value for name, value in LLAMA.items() if name != field}, "x")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({**LLAMA, "hidden_size": 65}, "hidden_size"),
        ({**LLAMA, "tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({**LLAMA, "model_type": 7}, "model_type"),
        ({**LLAMA, "model_type": "jamba"}, "model_type"),
        ({**LLAMA, "model_type": "new", "layer_types": ["linear_attention"] * 4}, "model_type 'new'"),
        ({**LLAMA, "is_encoder_decoder": True}, "is_encoder_decoder"),
        ({**SLIDING, "layer_types": ["sliding_attention"]}, "layer_types"),
        ({**SLIDING, "layer_types": ["odd"] * 4}, "layer_types"),
        ({**SLIDING, "layer_types": "all"}, "layer_types"),
        ({**MOE, "num_local_experts": -8}, "num_local_experts"),
        ({**MOE, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({**MOE, "mlp_only_layers": ["first"]}, "mlp_only_layers"),
        ({**MOE, "decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({**MLA, "qk_rope_head_dim": None}, "qk_rope_head_dim"),
        ({"text_config": 7}, "must be an object"),
        ([LLAMA], "must be an object"),
        (None, "must be an object"),
    ],
)
def test_what_does_not_go_together_is_named(config: Any, field: str) -> None:
    with pytest.raises(BadPlan, match=field):
        shape_of(config, "x")


@pytest.mark.parametrize(
    ("quantization", "field"),
    [
        ("awq", "quantization_config"),
        ({}, "quant_method"),
        ({"quant_method": "magic"}, "quant_method"),
        ({"quant_method": "awq", "bits": 5}, "bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 3}}}}, "num_bits"),
    ],
)
def test_a_quantization_that_is_not_understood_is_named(
    quantization: Any, field: str, a_model: Any, tmp_path: Path
) -> None:
    with pytest.raises(BadPlan, match=field):
        load(str(a_model(tmp_path / "m", {**LLAMA, "quantization_config": quantization})))


@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_a_dtype_that_is_not_understood_is_named(field: str, a_model: Any, tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=field):
        load(str(a_model(tmp_path / "m", {**LLAMA, field: "float8"})))


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_a_file_that_is_no_config_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadPlan, match=r"config\.json"):
        load(str(tmp_path))


def test_a_directory_without_one_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=r"config\.json: No such file"):
        load(str(tmp_path))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted({*LLAMA, *MOE, *MLA, *SLIDING, "layer_types", "text_config", "n_shared_experts"})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        ),
        max_size=6,
    )
)
def test_nothing_else_than_a_clear_error_comes_of_nonsense(nonsense: dict[str, Any]) -> None:
    try:
        shape = shape_of({**LLAMA, **nonsense}, "x")
    except BadPlan as error:
        assert "config.json" in str(error)
    else:
        assert counted(shape) > 0


def test_an_unknown_kind_is_counted_like_a_llama_and_said_so() -> None:
    found = shape_of({**LLAMA, "model_type": "brand_new"}, "x")
    assert counted(found) == counted(shape_of(LLAMA, "x"))
    assert "brand_new" in found.notes[0]


def test_of_a_model_that_sees_the_language_model_is_counted_and_said_so() -> None:
    found = shape_of({"model_type": "seer", "text_config": LLAMA, "vision_config": {}}, "x")
    assert counted(found) == counted(shape_of(LLAMA, "x"))
    assert "text_config" in found.notes[0]


def test_a_window_beyond_the_context_is_none() -> None:
    assert shape_of({**SLIDING, "sliding_window": 4096}, "x").window is None


def test_qwen_slides_only_where_it_is_told_to() -> None:
    config = {**SLIDING, "model_type": "qwen2", "max_window_layers": 2}
    assert shape_of(config, "x").sliding == ()
    assert shape_of({**config, "use_sliding_window": True}, "x").sliding == (False, False, True, True)
