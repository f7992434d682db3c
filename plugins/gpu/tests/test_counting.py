"""Parameters and KV caches of models, counted from their shapes, beside what is published of them."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_gpu.cache import bytes_per_token
from headrace_gpu.hfconfig import shape_of
from headrace_gpu.known import MODELS
from headrace_gpu.model import load
from headrace_gpu.quantization import named
from headrace_gpu.weights import bytes_per_stage, counted

PUBLISHED = {
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "Llama-3.2-3B-Instruct": 3_212_749_824,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.1-70B-Instruct": 70_553_706_496,
    "Llama-3.3-70B-Instruct": 70_553_706_496,
    "Llama-3.1-405B-Instruct": 405_853_388_800,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "gemma-2-9b-it": 9_241_705_984,
    "gemma-2-27b-it": 27_227_128_320,
    "gemma-3-1b-it": 999_885_952,
    "DeepSeek-V3": 671_026_419_200,
    "DeepSeek-R1": 671_026_419_200,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}
"""What the models' pages at Hugging Face count in their safetensors; of DeepSeek without multi-token prediction."""

OTHERS: list[tuple[str, tuple[int, ...], int, dict[str, Any]]] = [
    ("llama", (576, 30, 9, 3, 1536, 49152), 134_515_008, {"tie_word_embeddings": True}),  # SmolLM2-135M
    ("mistral", (5120, 40, 32, 8, 14336, 131072), 12_247_782_400, {"head_dim": 128}),  # Mistral-Nemo-2407
    ("phi3", (5120, 40, 40, 10, 17920, 100352), 14_659_507_200, {}),  # phi-4
    ("olmo2", (4096, 32, 32, 32, 11008, 100352), 7_298_617_344, {}),  # OLMo-2-1124-7B
    ("smollm3", (2048, 36, 16, 4, 11008, 128256), 3_075_098_624, {"tie_word_embeddings": True}),  # SmolLM3-3B
    ("gemma", (2048, 18, 8, 1, 16384, 256000), 2_506_172_416, {"head_dim": 256}),  # gemma-2b
    (
        "qwen2_moe",  # Qwen1.5-MoE-A2.7B
        (2048, 24, 16, 16, 5632, 151936),
        14_315_784_192,
        {"num_experts": 60, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    ),
    (
        "deepseek_v2",  # DeepSeek-V2-Lite
        (2048, 27, 16, 16, 10944, 102400),
        15_706_484_224,
        {
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "q_lora_rank": None,
            "topk_method": "greedy",
        },
    ),
]
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


@pytest.mark.parametrize("name", [full.partition("/")[2] for full in MODELS])
def test_the_parameters_of_a_known_model_are_those_published(name: str) -> None:
    assert counted(load(name).shape) == PUBLISHED[name]


@pytest.mark.parametrize(("kind", "sizes", "published", "more"), OTHERS, ids=[str(each[2]) for each in OTHERS])
def test_the_parameters_of_other_kinds_are_those_published(
    kind: str, sizes: tuple[int, ...], published: int, more: dict[str, Any]
) -> None:
    config = dict(zip((*NAMES, "vocab_size"), sizes, strict=True))
    assert counted(shape_of({"model_type": kind, **config, **more}, "x")) == published


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("qwen2.5-7b", 57_344),
        ("qwen2.5-72b", 327_680),
        ("deepseek-v3", 70_272),
    ],
)
def test_the_kv_cache_of_a_token_is_that_published(name: str, published: int) -> None:
    shape = load(name).shape
    assert shape.layers * bytes_per_token(shape, 2) == published


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_gpt_oss_takes_what_its_model_card_says(name: str, gib: float) -> None:
    model = load(name)
    assert round(bytes_per_stage(model.shape, model.quantization, 2, 1, 1)[0] / 1024**3, 1) == gib


def test_llama_70b_in_awq_takes_what_its_checkpoint_does() -> None:
    found = bytes_per_stage(load("llama-3.1-70b").shape, named("awq"), 2, 1, 1)[0]
    assert round(found / 1e9, 2) == 39.77


def test_llama_8b_in_gguf_takes_what_llama_cpp_says() -> None:
    found = bytes_per_stage(load("llama-3.1-8b").shape, named("Q4_K_M"), 2, 1, 1)[0]
    assert round(found / 1024**3, 2) == 4.58


def test_llama_8b_takes_what_vllm_logs() -> None:
    assert round(bytes_per_stage(load("llama-3.1-8b").shape, named("none"), 2, 1, 1)[0] / 1024**3, 2) == 14.96


def test_every_known_model_is_found_without_its_owner() -> None:
    assert {load(full.partition("/")[2].lower()).serve for full in MODELS} == set(MODELS)
