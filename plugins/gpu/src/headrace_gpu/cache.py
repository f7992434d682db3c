"""The KV cache as vLLM lays it out: blocks of tokens, in groups of layers that need equally many of them.

After vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py; see docs/gpu.md.
"""

from __future__ import annotations

import msgspec

from .shape import Shape
from .units import ceil_div

BLOCK = 16
"""Tokens in a block."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What sequences take on the devices of each stage."""

    full: int
    """Groups of layers that keep the whole context."""
    sliding: int
    """Groups of layers that keep a window."""
    window: int
    batched: int
    """Tokens that are computed at once: a window reaches back from the first of them."""
    stage_bytes: tuple[int, ...]
    """Bytes of a block on one device of each stage."""

    def blocks(self, context: int) -> int:
        """Blocks of a sequence of so many tokens."""
        seen = min(max(self.window, 1) - 1 + self.batched, context)
        return self.full * ceil_div(context, BLOCK) + self.sliding * (ceil_div(seen, BLOCK) + 1)

    def longest(self, blocks: int, limit: int) -> int:
        """The most tokens up to `limit` for which so many blocks are enough; 0: not even for one."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks(middle) <= blocks else (low, middle - 1)
        return low


def bytes_per_token(shape: Shape, kv_bytes: int, tp: int = 1) -> int:
    """Of one layer, on one device. Heads are shared out; the one vector of latent attention is everywhere."""
    if shape.latent is not None:
        return (shape.latent.rank + shape.latent.rope) * kv_bytes
    return 2 * shape.kv_heads_on(tp) * shape.head_dim * kv_bytes


def layout(shape: Shape, kv_bytes: int, tp: int, pp: int, batched: int) -> Layout:
    """How the cache is laid out over `tp` x `pp` devices."""
    whole = [layer for layer in range(shape.layers) if not shape.is_sliding(layer)]
    window = [layer for layer in range(shape.layers) if shape.is_sliding(layer)]
    size = _group_size(len(whole), len(window))
    full, sliding = _groups(whole, size), _groups(window, size)
    page = BLOCK * bytes_per_token(shape, kv_bytes, tp)
    stages = tuple(page * _slots([*full, *sliding], layers) for layers in shape.stages(pp))
    return Layout(full=len(full), sliding=len(sliding), window=shape.window or 0, batched=batched, stage_bytes=stages)


def _group_size(whole: int, window: int) -> int:
    """Layers in a group: all groups are of one size, that of the rarer kind, unless the other is hardly larger."""
    fewer, more = sorted((whole, window))
    if fewer == 0:
        return more
    return more if more < 1.5 * fewer else fewer


def _groups(layers: list[int], size: int) -> list[list[int]]:
    count = ceil_div(len(layers), size)
    return [layers[number::count] for number in range(count)]


def _slots(groups: list[list[int]], layers: range) -> int:
    """Layers of a stage that each block has room for."""
    return max(sum(layer in layers for layer in group) for group in groups)
