"""The matrices of a model, counted, and what of them each device of a group keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from .quantization import Quantization
from .shape import Experts, Latent, Shape
from .units import BadPlan, ceil_div

Split = Literal["rows", "columns", "kv", "none"]


class Part(msgspec.Struct, frozen=True):
    """Matrices of one size: `rows` outputs, `columns` inputs."""

    kind: str
    """`attention`, `mlp`, `expert`, `embedding`, `router`, `small`."""
    rows: int
    columns: int
    copies: int = 1
    split: Split = "none"
    """What tensor parallelism divides; `kv`: `rows` is one KV head, and each device has its heads."""

    @property
    def parameters(self) -> int:
        return self.rows * self.columns * self.copies

    def bytes_on(self, tp: int, shape: Shape, quantization: Quantization, dtype: int) -> int:
        """On each of `tp` devices."""
        rows = ceil_div(self.rows, tp) if self.split == "rows" else self.rows
        columns = ceil_div(self.columns, tp) if self.split == "columns" else self.columns
        copies = self.copies // shape.kv_heads * shape.kv_heads_on(tp) if self.split == "kv" else self.copies
        one = quantization.bytes_of(rows, columns) if quantization.covers(self.kind) else rows * columns * dtype
        return one * copies


def parts_of_layer(shape: Shape, layer: int) -> Iterator[Part]:
    """Everything in one layer."""
    yield Part("small", shape.norms, shape.hidden)
    yield from _latent(shape, shape.latent) if shape.latent else _attention(shape)
    if shape.experts is not None and shape.is_sparse(layer):
        yield from _experts(shape, shape.experts)
    else:
        yield from _mlp("mlp", shape.hidden, shape.intermediate)
        if shape.mlp_bias:
            yield Part("small", 2 * shape.intermediate, 1, split="rows")
            yield Part("small", shape.hidden, 1)


def parts_of_ends(shape: Shape, *, first: bool, last: bool) -> Iterator[Part]:
    """The embedding before the first layer; the norm and the output matrix after the last one."""
    if first or (last and shape.tied):
        yield Part("embedding", shape.vocab, shape.hidden, split="rows")
    if last:
        yield Part("small", 1, shape.hidden)
        if not shape.tied:
            yield Part("embedding", shape.vocab, shape.hidden, split="rows")


def counted(shape: Shape) -> int:
    """Parameters, counted."""
    ends = sum(part.parameters for part in parts_of_ends(shape, first=True, last=True))
    return ends + sum(sum(part.parameters for part in parts_of_layer(shape, layer)) for layer in range(shape.layers))


def parameters(shape: Shape) -> int:
    """Parameters: as they were given, or else counted."""
    return shape.declared or counted(shape)


def bytes_per_stage(shape: Shape, quantization: Quantization, dtype: int, tp: int, pp: int) -> list[int]:
    """Bytes of weights on each device of each stage. Where the number of parameters was given, that is what counts, and
    the matrices tell only how they are split."""
    found = []
    for number, layers in enumerate(shape.stages(pp)):
        ends = parts_of_ends(shape, first=number == 0, last=number == pp - 1)
        stage = sum(part.bytes_on(tp, shape, quantization, dtype) for part in ends)
        sparse = sum(shape.is_sparse(layer) for layer in layers)
        stage += sparse * _layer_bytes(shape, layers, True, quantization, dtype, tp)
        stage += (len(layers) - sparse) * _layer_bytes(shape, layers, False, quantization, dtype, tp)
        found.append(stage)
    if shape.declared:
        return [ceil_div(each * shape.declared, counted(shape)) for each in found]
    return found


def absorbed(shape: Shape, quantization: Quantization, dtype: int, tp: int, layers: int) -> int:
    """Bytes that vLLM keeps beside quantized latent attention: its up-projection once more, not quantized."""
    if shape.latent is None or not quantization.covers("attention"):
        return 0
    return layers * shape.latent.rank * ceil_div(shape.heads, tp) * (shape.latent.nope + shape.latent.value) * dtype


def _layer_bytes(shape: Shape, layers: range, sparse: bool, quantization: Quantization, dtype: int, tp: int) -> int:
    like = next((layer for layer in layers if shape.is_sparse(layer) is sparse), None)
    if like is None:
        return 0
    return sum(part.bytes_on(tp, shape, quantization, dtype) for part in parts_of_layer(shape, like))


def _attention(shape: Shape) -> Iterator[Part]:
    width = shape.heads * shape.head_dim
    yield Part("attention", width, shape.hidden, split="rows")
    yield Part("attention", shape.head_dim, shape.hidden, 2 * shape.kv_heads, split="kv")
    yield Part("attention", shape.hidden, width, split="columns")
    if shape.qkv_bias:
        yield Part("small", width, 1, split="rows")
        yield Part("small", shape.head_dim, 1, 2 * shape.kv_heads, split="kv")
    if shape.o_bias:
        yield Part("small", shape.hidden, 1)
    if shape.qk_norm:
        yield Part("small", shape.qk_norm, 1)
    if shape.sinks:
        yield Part("small", shape.heads, 1, split="rows")


def _latent(shape: Shape, latent: Latent) -> Iterator[Part]:
    query = shape.heads * (latent.nope + latent.rope)
    if latent.query_rank is None:
        yield Part("attention", query, shape.hidden, split="rows")
    else:
        yield Part("attention", latent.query_rank, shape.hidden)
        yield Part("small", latent.query_rank, 1)
        yield Part("attention", query, latent.query_rank, split="rows")
    yield Part("attention", latent.rank + latent.rope, shape.hidden)
    yield Part("small", latent.rank, 1)
    yield Part("attention", shape.heads * (latent.nope + latent.value), latent.rank, split="rows")
    yield Part("attention", shape.hidden, shape.heads * latent.value, split="columns")


def _experts(shape: Shape, experts: Experts) -> Iterator[Part]:
    yield Part("router", experts.count, shape.hidden)
    yield from _mlp("expert", shape.hidden, experts.intermediate, experts.count)
    if experts.shared:
        yield from _mlp("mlp", shape.hidden, experts.shared)
    if experts.shared_gate:
        yield Part("router", 1, shape.hidden)
    if experts.router_extra:
        yield Part("small", experts.router_extra, 1)
    if experts.bias:
        yield Part("small", 2 * experts.intermediate, 1, experts.count, split="rows")
        yield Part("small", shape.hidden, 1, experts.count)


def _mlp(kind: str, hidden: int, intermediate: int, copies: int = 1) -> Iterator[Part]:
    """Gate and up, then down."""
    yield Part(kind, intermediate, hidden, 2 * copies, split="rows")
    yield Part(kind, hidden, intermediate, copies, split="columns")


def why_not(shape: Shape, quantization: Quantization, tp: int) -> str:
    """Why a model cannot be split over so many devices of a group; empty: it can."""
    if shape.heads % tp:
        return f"{tp} does not divide the {shape.heads} attention heads"
    if shape.latent is None and max(shape.kv_heads, tp) % min(shape.kv_heads, tp):
        return f"{shape.kv_heads} KV heads cannot be shared by {tp} devices"
    if not shape.intermediate_known:
        return ""
    for width in _widths(shape):
        if width % tp:
            return f"{tp} does not divide the width {width} of the MLP"
        if quantization.aligned and tp > 1 and (width // tp) % quantization.group:
            return f"{width} / {tp} is no multiple of the {quantization.group} weights that share a scale"
    return ""


def possible_tp(shape: Shape, quantization: Quantization, limit: int = 64) -> list[int]:
    """Sizes of tensor parallelism that the model allows, up to `limit`."""
    return [tp for tp in range(1, limit + 1) if not why_not(shape, quantization, tp)]


def check_stages(shape: Shape, pp: int) -> None:
    """Raises BadPlan if a pipeline has more stages than the model has layers."""
    if pp > shape.layers:
        raise BadPlan(f"--pp {pp}: the model has {shape.layers} layers, and a stage needs one at least")


def _widths(shape: Shape) -> set[int]:
    experts = shape.experts
    dense = experts is None or not all(shape.sparse)
    found = {shape.intermediate} if dense else set()
    if experts is not None:
        found |= {width for width in (experts.intermediate, experts.shared) if width}
    return found
