"""The shape of a model from its config.json, as Hugging Face's transformers writes it."""

from __future__ import annotations

from typing import Any

from .fields import Fields
from .layers import experts_of, sliding_of, sparse_of
from .shape import Latent, Shape
from .units import BadPlan

INNER = ("text_config", "language_config", "llm_config")
"""Where models that see or hear as well keep what is said of their language model."""

LIKE_LLAMA = frozenset(
    (
        *("llama", "llama4_text", "mistral", "mixtral", "phi3", "granite", "smollm3", "olmo2", "gpt_oss"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "gemma3_text"),
        *("deepseek_v2", "deepseek_v3", "kimi_k2"),
    )
)
"""Kinds whose parameters are counted exactly, up to what the notes say."""

WITH_STATE = frozenset(
    (
        *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba2", "nemotron_h", "plamo2", "lfm2"),
        *("granitemoehybrid", "qwen3_next", "kimi_linear", "minimax", "recurrent_gemma", "rwkv", "xlstm"),
    )
)
"""Kinds with layers that keep a state in place of a KV cache."""

TIED = frozenset(("gemma", "gemma2", "gemma3", "gemma3_text"))
BIASED = frozenset(("qwen2", "qwen2_moe"))
"""Kinds with biases for queries, keys and values that config.json does not mention."""


def shape_of(config: Any, name: str) -> Shape:
    """What a decoded config.json says.

    Raises:
        BadPlan: it is none of a decoder-only transformer; the message names the field.
    """
    outer = Fields(config)
    inner = next((key for key in INNER if key in outer), None)
    fields = Fields(outer.get(inner)) if inner else outer
    kind = fields.text("model_type") or outer.text("model_type")
    _check_kind(fields, kind)
    notes = []
    if inner:
        notes.append(f"only its language model ({inner}) is counted: add what it sees or hears with")
    if kind not in LIKE_LLAMA:
        notes.append(f"model_type {kind!r} is not known to this plan and counted like a Llama; give its safetensors")
    return _shape(fields, name, kind, notes, tied=_tied(outer, fields, kind))


def _check_kind(fields: Fields, kind: str) -> None:
    if kind in WITH_STATE or any("linear" in str(each) for each in _list(fields.get("layer_types"))):
        raise BadPlan(f"config.json: model_type {kind!r} has layers that keep a state, not a KV cache: not planned yet")
    if fields.flag("is_encoder_decoder"):
        raise BadPlan("config.json: is_encoder_decoder: only decoder-only models can be planned")


def _shape(fields: Fields, name: str, kind: str, notes: list[str], tied: bool) -> Shape:
    layers = fields.count("num_hidden_layers", high=4096)
    hidden = fields.count("hidden_size")
    heads = fields.count("num_attention_heads", high=65536)
    kv_heads = fields.count("num_key_value_heads", heads, high=65536)
    if heads % kv_heads:
        raise BadPlan(f"config.json: num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})")
    latent = _latent(fields)
    head_dim = fields.count("head_dim", 0 if latent else hidden // heads, low=1, high=65536) or 1
    if "head_dim" not in fields and not latent and hidden % heads:
        raise BadPlan(
            f"config.json: num_attention_heads ({heads}) must divide hidden_size ({hidden}), or give head_dim"
        )
    experts = experts_of(fields, kind)
    sliding, window = sliding_of(fields, kind, layers, notes)
    biased = fields.flag("attention_bias", kind in BIASED) or fields.flag("qkv_bias")
    return Shape(
        name=name,
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_intermediate(fields, kind, experts is not None),
        vocab=fields.count("vocab_size", high=1 << 24),
        tied=tied,
        max_context=fields.maybe("max_position_embeddings", high=1 << 30),
        qkv_bias=biased,
        o_bias=biased and kind not in BIASED,
        mlp_bias=fields.flag("mlp_bias"),
        qk_norm=_qk_norm(kind, heads, kv_heads, head_dim),
        sinks=kind == "gpt_oss",
        norms=4 if kind in ("gemma2", "gemma3", "gemma3_text") else 2,
        experts=experts,
        sparse=sparse_of(fields, kind, layers) if experts else (),
        latent=latent,
        window=window,
        sliding=sliding,
        notes=tuple(notes),
    )


def _tied(outer: Fields, fields: Fields, kind: str) -> bool:
    place = fields if "tie_word_embeddings" in fields else outer
    return place.flag("tie_word_embeddings", kind in TIED)


def _intermediate(fields: Fields, kind: str, with_experts: bool) -> int:
    if kind == "llama4_text":
        return fields.count("intermediate_size_mlp")
    if with_experts and "intermediate_size" not in fields:
        return fields.count("moe_intermediate_size")
    return fields.count("intermediate_size")


def _latent(fields: Fields) -> Latent | None:
    if "kv_lora_rank" not in fields:
        return None
    return Latent(
        query_rank=fields.maybe("q_lora_rank", high=1 << 20),
        rank=fields.count("kv_lora_rank"),
        rope=fields.count("qk_rope_head_dim"),
        nope=fields.count("qk_nope_head_dim"),
        value=fields.count("v_head_dim"),
    )


def _qk_norm(kind: str, heads: int, kv_heads: int, head_dim: int) -> int:
    if kind in ("qwen3", "qwen3_moe", "gemma3", "gemma3_text"):
        return 2 * head_dim
    if kind == "olmo2":
        return (heads + kv_heads) * head_dim
    return 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
