"""Weights as they lie in files: their headers are read, and not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace_gpu.hfconfig import shape_of
from headrace_gpu.safetensors import stored, tensors
from headrace_gpu.shape import Shape
from headrace_gpu.units import BadPlan

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "vocab_size": 1000,
}
TENSORS = {
    "model.embed_tokens.weight": ("BF16", [1000, 64]),
    "model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64]),
    "model.layers.1.mlp.up_proj.weight": ("BF16", [128, 64]),
    "lm_head.weight": ("BF16", [1000, 64]),
}
WHOLE = 2 * (2 * 64_000 + 2 * 8192)


@pytest.fixture
def shape() -> Shape:
    return shape_of(CONFIG, "x")


def test_bytes_are_added_up_over_files(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    first = safetensors_file(tmp_path / "model-1.safetensors", dict(list(TENSORS.items())[:2]))
    second = safetensors_file(tmp_path / "model-2.safetensors", dict(list(TENSORS.items())[2:]))
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert (found.bytes, found.files, first + second) == (WHOLE, 2, WHOLE)


def test_without_files_there_is_nothing(shape: Shape, tmp_path: Path) -> None:
    assert stored(tmp_path, shape, 2, quantized=False) is None


def test_floats_count_as_they_are_loaded(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "a.safetensors", {"model.norm.weight": ("F32", [64])})
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert found.bytes == 128


def test_quantized_weights_count_as_they_are_stored(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "a.safetensors", {"x.qweight": ("I32", [64]), "x.scales": ("F32", [64])})
    found = stored(tmp_path, shape, 2, quantized=True)
    assert found is not None
    assert found.bytes == 512


def test_an_output_matrix_beside_a_tied_embedding_does_not_count(safetensors_file: Any, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "a.safetensors", TENSORS)
    found = stored(tmp_path, shape_of({**CONFIG, "tie_word_embeddings": True}, "x"), 2, quantized=False)
    assert found is not None
    assert found.bytes == WHOLE - 128_000


def test_layers_beyond_the_models_own_do_not_count(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "a.safetensors", {**TENSORS, "model.layers.2.eh_proj.weight": ("BF16", [64, 128])})
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert found.bytes == WHOLE


def test_a_second_copy_of_the_weights_does_not_count(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "model.safetensors", TENSORS)
    safetensors_file(tmp_path / "consolidated.safetensors", TENSORS)
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert found.bytes == WHOLE


def index(folder: Path, weight_map: Any, **metadata: Any) -> None:
    text = json.dumps({"metadata": metadata, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_an_index_names_the_files_that_count(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    safetensors_file(tmp_path / "one.safetensors", TENSORS)
    safetensors_file(tmp_path / "other.safetensors", TENSORS)
    index(tmp_path, dict.fromkeys(TENSORS, "one.safetensors"))
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert (found.bytes, found.by_headers) == (WHOLE, True)


def test_an_index_without_its_files_tells_their_sum(shape: Shape, tmp_path: Path) -> None:
    index(tmp_path, {"a": "one.safetensors"}, total_size=12345)
    found = stored(tmp_path, shape, 2, quantized=False)
    assert found is not None
    assert (found.bytes, found.by_headers) == (12345, False)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a\0b", "a\\b", 7, None])
def test_an_index_cannot_name_files_elsewhere(name: Any, shape: Shape, tmp_path: Path) -> None:
    index(tmp_path, {"a": name}, total_size=12345)
    with pytest.raises(BadPlan, match="weight_map"):
        stored(tmp_path, shape, 2, quantized=False)


@pytest.mark.parametrize("size", [None, "much", -1, 0, True, 1e300, 1 << 60])
def test_an_index_must_tell_a_size(size: Any, shape: Shape, tmp_path: Path) -> None:
    index(tmp_path, {"a": "one.safetensors"}, total_size=size)
    with pytest.raises(BadPlan, match="total_size"):
        stored(tmp_path, shape, 2, quantized=False)


@pytest.mark.parametrize("text", [b"", b"[", b"7", b"{}", b'{"weight_map": []}', b"[" * 100_000])
def test_a_broken_index_is_named(text: bytes, shape: Shape, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(BadPlan, match="index"):
        stored(tmp_path, shape, 2, quantized=False)


def a_file(folder: Path, length: int, rest: bytes) -> Path:
    file = folder / "bad.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + rest)
    return file


@pytest.mark.parametrize("length", [3, 1000, 1 << 40, (1 << 64) - 1])
def test_a_length_that_lies_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=r"bad\.safetensors"):
        list(tensors(a_file(tmp_path, length, b"{}")))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 7])
def test_a_file_without_a_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(BadPlan, match=r"bad\.safetensors"):
        list(tensors(tmp_path / "bad.safetensors"))


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    file = a_file(tmp_path, 200_000_000, b"{}")
    with file.open("r+b") as stream:
        stream.truncate(300_000_000)
    with pytest.raises(BadPlan, match="100000000 are allowed"):
        list(tensors(file))


@pytest.mark.parametrize("header", [b"[]", b"7", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_no_object_is_refused(header: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match=r"bad\.safetensors"):
        list(tensors(a_file(tmp_path, len(header), header)))


GOOD: dict[str, Any] = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {},
        {**GOOD, "dtype": "F13"},
        {**GOOD, "dtype": ["BF16"]},
        {**GOOD, "shape": [-2, -2]},
        {**GOOD, "shape": [2.0, 2]},
        {**GOOD, "shape": [1 << 62] * 40},
        {**GOOD, "shape": [3, 3]},
        {**GOOD, "shape": "2x2"},
        {**GOOD, "data_offsets": [0, 1 << 50]},
        {**GOOD, "data_offsets": [8, 0]},
        {**GOOD, "data_offsets": [-8, 0]},
        {**GOOD, "data_offsets": [0]},
        {**GOOD, "data_offsets": [0, True]},
        {**GOOD, "data_offsets": None},
    ],
)
def test_a_tensor_that_cannot_be_is_named(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"layer": entry}).encode()
    with pytest.raises(BadPlan, match="tensor 'layer'"):
        list(tensors(a_file(tmp_path, len(header), header + b"\0" * 8)))


def test_the_data_is_never_read(safetensors_file: Any, shape: Shape, tmp_path: Path) -> None:
    """A sparse file of a terabyte takes no time."""
    end = safetensors_file(tmp_path / "huge.safetensors", {"a": ("U8", [1 << 40])})
    found = stored(tmp_path, shape, 2, quantized=True)
    assert found is not None
    assert found.bytes == end == 1 << 40
