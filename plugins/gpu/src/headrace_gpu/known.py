"""Models that many people run, as their config.json describes them. Their pages at https://huggingface.co have these
numbers; the tests hold the parameters counted from them to the ones published there."""

from __future__ import annotations

import re
from typing import Any

from .units import BadPlan

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def _config(kind: str, sizes: tuple[int, ...], vocab: int, reach: int, **more: Any) -> dict[str, Any]:
    config = dict(zip(_SIZES, sizes, strict=True))
    return {"model_type": kind, **config, "vocab_size": vocab, "max_position_embeddings": reach, **more}


_MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
_GPT_OSS = {"head_dim": 64, "experts_per_token": 4, "attention_bias": True, "sliding_window": 128}
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
_DEEPSEEK = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "topk_method": "noaux_tc", "quantization_config": _FP8,
}  # fmt: skip
_QWEN3_MOE = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}

MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": _config(
        "llama", (2048, 16, 32, 8, 8192), 128256, 131072, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _config(
        "llama", (3072, 28, 24, 8, 8192), 128256, 131072, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _config("llama", (4096, 32, 32, 8, 14336), 128256, 131072),
    "meta-llama/Llama-3.1-70B-Instruct": _config("llama", (8192, 80, 64, 8, 28672), 128256, 131072),
    "meta-llama/Llama-3.3-70B-Instruct": _config("llama", (8192, 80, 64, 8, 28672), 128256, 131072),
    "meta-llama/Llama-3.1-405B-Instruct": _config("llama", (16384, 126, 128, 8, 53248), 128256, 131072),
    "Qwen/Qwen2.5-7B-Instruct": _config("qwen2", (3584, 28, 28, 4, 18944), 152064, 32768),
    "Qwen/Qwen2.5-32B-Instruct": _config("qwen2", (5120, 64, 40, 8, 27648), 152064, 32768),
    "Qwen/Qwen2.5-72B-Instruct": _config("qwen2", (8192, 80, 64, 8, 29568), 152064, 32768),
    "Qwen/Qwen3-8B": _config("qwen3", (4096, 36, 32, 8, 12288), 151936, 40960, head_dim=128),
    "Qwen/Qwen3-32B": _config("qwen3", (5120, 64, 64, 8, 25600), 151936, 40960, head_dim=128),
    "Qwen/Qwen3-30B-A3B": _config(
        "qwen3_moe", (2048, 48, 32, 4, 6144), 151936, 40960, **_QWEN3_MOE, moe_intermediate_size=768
    ),
    "Qwen/Qwen3-235B-A22B": _config(
        "qwen3_moe", (4096, 94, 64, 4, 12288), 151936, 40960, **_QWEN3_MOE, moe_intermediate_size=1536
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _config("mistral", (4096, 32, 32, 8, 14336), 32768, 32768),
    "mistralai/Mistral-Small-24B-Instruct-2501": _config(
        "mistral", (5120, 40, 32, 8, 32768), 131072, 32768, head_dim=128
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _config(
        "mixtral", (4096, 32, 32, 8, 14336), 32000, 32768, num_local_experts=8, num_experts_per_tok=2
    ),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": _config(
        "mixtral", (6144, 56, 48, 8, 16384), 32768, 65536, num_local_experts=8, num_experts_per_tok=2
    ),
    "google/gemma-2-9b-it": _config(
        "gemma2", (3584, 42, 16, 8, 14336), 256000, 8192, head_dim=256, sliding_window=4096
    ),
    "google/gemma-2-27b-it": _config(
        "gemma2", (4608, 46, 32, 16, 36864), 256000, 8192, head_dim=128, sliding_window=4096
    ),
    "google/gemma-3-1b-it": _config(
        "gemma3_text", (1152, 26, 4, 1, 6912), 262144, 32768, head_dim=256, sliding_window=512
    ),
    "deepseek-ai/DeepSeek-V3": _config("deepseek_v3", (7168, 61, 128, 128, 18432), 129280, 163840, **_DEEPSEEK),
    "deepseek-ai/DeepSeek-R1": _config("deepseek_v3", (7168, 61, 128, 128, 18432), 129280, 163840, **_DEEPSEEK),
    "openai/gpt-oss-20b": _config(
        "gpt_oss", (2880, 24, 64, 8, 2880), 201088, 131072, **_GPT_OSS, num_local_experts=32, quantization_config=_MXFP4
    ),
    "openai/gpt-oss-120b": _config(
        "gpt_oss",
        (2880, 36, 64, 8, 2880),
        201088,
        131072,
        **_GPT_OSS,
        num_local_experts=128,
        quantization_config=_MXFP4,
    ),
}
"""By their names at Hugging Face."""


def find(name: str) -> tuple[str, dict[str, Any]]:
    """A model by its name, or the end of it: `Llama-3.1-8B-Instruct`, `llama-3.1-8b`. Returns the whole name, too.

    Raises:
        BadPlan: there is none.
    """
    wanted = _plain(name)
    for full, config in MODELS.items():
        if wanted in (_plain(full), _plain(full.partition("/")[2])):
            return full, config
    shown = ", ".join(full.partition("/")[2] for full in MODELS)
    raise BadPlan(f"{name[:80]!r} is neither a file, nor a directory with a config.json, nor one of: {shown}")


def _plain(name: str) -> str:
    return re.sub(r"-(instruct|it|v\d\.\d|\d{4})(?=-|$)", "", name.lower())
