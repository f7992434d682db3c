"""What of a model decides how much memory it takes."""

from __future__ import annotations

import msgspec

from .units import ceil_div


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """The mixture of experts of a layer that has one."""

    count: int
    active: int
    """Experts that each token is sent to."""
    intermediate: int
    shared: int = 0
    """Width of what all tokens go through beside them, shared experts together."""
    shared_gate: bool = False
    bias: bool = False
    """Whether the experts have biases."""
    router_extra: int = 0
    """Parameters of the router beside its matrix: biases and corrections, per expert."""


class Latent(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek): the cache keeps one small vector per token for all heads."""

    query_rank: int | None
    """None: queries are not compressed."""
    rank: int
    rope: int
    nope: int
    value: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer. Sizes are counts of numbers, not bytes."""

    name: str
    kind: str = "llama"
    """`model_type` of config.json."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the dense MLP."""
    intermediate_known: bool = True
    vocab: int
    tied: bool = False
    """Whether the embedding is the output matrix as well."""
    max_context: int | None = None
    """Tokens; None: not known."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: int = 0
    """Parameters of the norms of queries and keys, per layer."""
    sinks: bool = False
    """A learned number per head (gpt-oss)."""
    norms: int = 2
    """Norms per layer, each of `hidden` parameters."""
    experts: Experts | None = None
    sparse: tuple[bool, ...] = ()
    """Of each layer, whether it has experts; empty: none has."""
    latent: Latent | None = None
    window: int | None = None
    """Tokens that sliding layers look back."""
    sliding: tuple[bool, ...] = ()
    """Of each layer, whether it looks back `window` tokens only; empty: none does."""
    declared: int | None = None
    """Parameters as they are given, where they are not counted."""
    notes: tuple[str, ...] = ()
    """What is approximate about it."""

    def is_sparse(self, layer: int) -> bool:
        return bool(self.sparse) and self.sparse[layer]

    def is_sliding(self, layer: int) -> bool:
        return bool(self.sliding) and self.sliding[layer]

    def kv_heads_on(self, tp: int) -> int:
        """KV heads that each device keeps: with more devices than heads they are kept several times."""
        return ceil_div(self.kv_heads, tp)

    def stages(self, pp: int) -> list[range]:
        """The layers of each stage of a pipeline, as vLLM deals them: what is left over goes to the stages before the
        last one, which has the output matrix."""
        each, over = divmod(self.layers, pp)
        sizes = [each] * pp
        for position in range(2, over + 2):
            sizes[-position] += 1
        starts = [sum(sizes[:number]) for number in range(pp)]
        return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
