"""Which layers of a model have experts, and which look back a few tokens only."""

from __future__ import annotations

from .fields import Fields
from .shape import Experts
from .units import BadPlan

COUNTS = ("n_routed_experts", "num_local_experts", "num_experts")
ALTERNATING = frozenset(("gemma2", "gpt_oss"))
PATTERNED = {"gemma3": 6, "gemma3_text": 6}
"""Every so many layers one looks back all the way."""


def experts_of(fields: Fields, kind: str) -> Experts | None:
    """The experts of the layers that have some; None: no layer has."""
    name = next((each for each in COUNTS if each in fields), None)
    count = fields.count(name, low=0, high=65536) if name else 0
    if count <= 1:
        return None
    width = "moe_intermediate_size" if "moe_intermediate_size" in fields else "intermediate_size"
    intermediate = fields.count(width)
    shared = fields.count("shared_expert_intermediate_size", 0, low=0)
    if "n_shared_experts" in fields:
        shared = fields.count("n_shared_experts", low=0, high=1024) * intermediate
    if kind == "llama4_text":
        shared = intermediate
    corrected = kind in ("deepseek_v3", "kimi_k2") or fields.get("topk_method") == "noaux_tc"
    return Experts(
        count=count,
        active=fields.count("num_experts_per_tok", fields.count("experts_per_token", 2, high=count), high=count),
        intermediate=intermediate,
        shared=shared,
        shared_gate=kind == "qwen2_moe" and shared > 0,
        bias=kind == "gpt_oss",
        router_extra=count if corrected or kind == "gpt_oss" else 0,
    )


def sparse_of(fields: Fields, kind: str, layers: int) -> tuple[bool, ...]:
    """Of each layer, whether it has experts."""
    first = fields.count("first_k_dense_replace", 0, low=0, high=4096)
    step = fields.count("decoder_sparse_step", fields.count("moe_layer_freq", 1, high=4096), high=4096)
    dense = set(fields.numbers("mlp_only_layers"))
    if kind == "llama4_text":
        every = fields.count("interleave_moe_layer_step", 1, high=4096)
        return tuple((layer + 1) % every == 0 for layer in range(layers))
    if "moe_layer_freq" in fields:
        return tuple(layer >= first and layer % step == 0 for layer in range(layers))
    return tuple(layer >= first and layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def sliding_of(fields: Fields, kind: str, layers: int, notes: list[str]) -> tuple[tuple[bool, ...], int | None]:
    """Of each layer, whether it looks back a window only, and that window. Adds to the notes what is approximate."""
    if "attention_chunk_size" in fields:
        notes.append("layers with chunked attention are counted as if they kept the whole context: an upper bound")
    window = fields.maybe("sliding_window")
    if window is None or (
        kind in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe") and not fields.flag("use_sliding_window")
    ):
        return (), None
    found = _sliding_layers(fields, kind, layers)
    reach = fields.maybe("max_position_embeddings", high=1 << 30)
    if not any(found) or (reach is not None and window >= reach):
        return (), None
    return found, window


def _sliding_layers(fields: Fields, kind: str, layers: int) -> tuple[bool, ...]:
    kinds = fields.words("layer_types", layers)
    if kinds:
        strange = next(
            (each for each in kinds if each not in ("full_attention", "sliding_attention", "chunked_attention")), ""
        )
        if strange:
            raise BadPlan(f"config.json: layer_types: {strange[:40]!r} is not known to this plan")
        return tuple(each == "sliding_attention" for each in kinds)
    if kind in ALTERNATING:
        return tuple(layer % 2 == 0 for layer in range(layers))
    if kind in PATTERNED or "sliding_window_pattern" in fields:
        every = fields.count("sliding_window_pattern", PATTERNED.get(kind, 1), high=4096)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if kind in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"):
        first = fields.count("max_window_layers", 0, low=0, high=4096)
        return tuple(layer >= first for layer in range(layers))
    return (True,) * layers
