"""What an engine takes beside weights and cache: estimates, fitted to what is published of vLLM; see docs/gpu.md."""

from __future__ import annotations

import msgspec

from .shape import Shape
from .units import GIB, MIB, ceil_div

CONTEXT = 3 * GIB // 10
"""CUDA's context and libraries, outside of PyTorch."""
COMMUNICATION = 2.64e-2
"""Of a device's memory: buffers of NCCL and of all-reduce, where several devices share each layer."""
MOST_COMMUNICATION = 21 * GIB // 10
GRAPHS = GIB // 4
PER_GRAPH = 14 * MIB
LOGIT = 14
"""Bytes per logit: as it is computed, as a float, and two more copies while tokens are sampled."""


class Overhead(msgspec.Struct, frozen=True):
    """Bytes on one device."""

    activations: int
    context: int
    graphs: int

    @property
    def total(self) -> int:
        return self.activations + self.context + self.graphs


def overhead(
    shape: Shape, *, memory: int, tp: int, last: bool, sequences: int, batched: int, eager: bool, dtype: int = 2
) -> Overhead:
    """For a device with so much memory.

    `last`: whether its stage computes logits. `sequences`, `batched`: how many sequences, and how many tokens, a step
    computes at most.
    """
    shared = min(int(memory * COMMUNICATION), MOST_COMMUNICATION) if tp > 1 else CONTEXT
    graphs = 0 if eager else GRAPHS + PER_GRAPH * graph_count(sequences)
    return Overhead(_activations(shape, tp, last, sequences, batched, dtype), max(shared, CONTEXT), graphs)


def graph_count(sequences: int) -> int:
    """CUDA graphs that vLLM captures: for batches of up to twice the sequences, at most 512 tokens, and of up to the
    sequences once more for decoding alone."""
    sizes: list[int] = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return sum(1 for size in sizes if size <= 2 * sequences) + sum(1 for size in sizes if size <= sequences)


def _activations(shape: Shape, tp: int, last: bool, sequences: int, batched: int, dtype: int) -> int:
    """The peak of a step: the residual stream, and the larger of a layer and the logits; experts' buffers stay."""
    stream: int = 3 * dtype * batched * shape.hidden
    layer = dtype * batched * ceil_div(max(3 * shape.intermediate, _attention(shape)), tp)
    logits = LOGIT * min(sequences, batched) * shape.vocab if last else 0
    if shape.experts is None:
        return stream + max(layer, logits)
    experts = shape.experts
    routed = dtype * batched * experts.active * (3 * ceil_div(experts.intermediate, tp) + shape.hidden)
    return stream + logits + max(routed, dtype * batched * ceil_div(_attention(shape), tp))


def _attention(shape: Shape) -> int:
    """Numbers per token that one layer's attention has at once."""
    if shape.latent is None:
        return 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    latent = shape.latent
    return shape.heads * (2 * (latent.nope + latent.rope) + 2 * latent.value)
