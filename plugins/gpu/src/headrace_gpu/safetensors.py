"""How many bytes of weights lie in a directory: from the headers of its safetensors files, never the data.

The format: eight bytes with the header's length (little-endian), the header as JSON, the data.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from .shape import Shape
from .units import BadPlan

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
LONGEST_INDEX = 64 * 1024**2
MOST_FILES = 10_000
INDEX = "model.safetensors.index.json"
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")


class Stored(msgspec.Struct, frozen=True):
    """What was found."""

    bytes: int
    """Of what an engine loads, in the dtype that it loads it in."""
    files: int
    by_headers: bool
    """False: the files are not there, and the index tells their sum."""


class Tensor(msgspec.Struct, frozen=True):
    """One entry of a header."""

    name: str
    dtype: str
    elements: int
    bytes: int


def stored(directory: Path, shape: Shape, dtype: int, quantized: bool) -> Stored | None:
    """The bytes of the weights in a directory; None: there are none in safetensors files.

    Not counted is what engines do not load: an output matrix beside a tied embedding, and layers beyond the model's
    own (DeepSeek's for multi-token prediction). Floats of a model that is not quantized count in the dtype they are
    loaded as, whatever they are stored as.

    Raises:
        BadPlan: a file is not what it says.
    """
    files = _files(directory)
    if not files:
        return None
    if not all(file.is_file() for file in files):
        return Stored(_total_size(directory), len(files), by_headers=False)
    total = 0
    for file in files:
        for tensor in tensors(file):
            if _is_loaded(tensor.name, shape):
                cast = not quantized and tensor.dtype in ("F64", "F32", "F16", "BF16")
                total += tensor.elements * dtype if cast else tensor.bytes
    return Stored(total, len(files), by_headers=True)


def tensors(file: Path) -> Iterator[Tensor]:
    """The entries of a file's header.

    Raises:
        BadPlan: the file cannot be read, or it is no safetensors file; the message names it.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > size - 8:
                raise BadPlan(f"{file}: its header would be {length} bytes long, and the file has {size}")
            if length > LONGEST_HEADER:
                raise BadPlan(f"{file}: its header would be {length} bytes long; {LONGEST_HEADER} are allowed")
            entries = decoded(stream.read(length), file)
    except OSError as error:
        raise BadPlan(f"{file}: {error.strerror or error}") from error
    if not isinstance(entries, dict):
        raise BadPlan(f"{file}: its header must be an object")
    data = size - 8 - length
    for name, entry in entries.items():
        if name != "__metadata__":
            yield _tensor(file, name, entry, data)


def decoded(text: bytes, file: Path) -> Any:
    """JSON. Raises BadPlan, which names the file."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadPlan(f"{file}: no JSON: {error}") from error


def _tensor(file: Path, name: str, entry: Any, data: int) -> Tensor:
    shown = f"{file}: tensor {name[:80]!r}"
    if not isinstance(entry, dict):
        raise BadPlan(f"{shown}: must be an object")
    dtype, sizes, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadPlan(f"{shown}: dtype {str(dtype)[:20]!r} is not known")
    if not _are_counts(sizes) or len(sizes) > 32:
        raise BadPlan(f"{shown}: shape must be a list of whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data:
        raise BadPlan(f"{shown}: data_offsets lie outside of the file's {data} bytes of data")
    elements = math.prod(sizes)
    if (elements * BITS[dtype] + 7) // 8 != offsets[1] - offsets[0]:
        raise BadPlan(f"{shown}: its shape and dtype do not go with data_offsets")
    return Tensor(name, dtype, elements, offsets[1] - offsets[0])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 63 for each in value
    )


def _is_loaded(name: str, shape: Shape) -> bool:
    if shape.tied and name.endswith("lm_head.weight"):
        return False
    layer = _LAYER.search(name)
    return layer is None or "vision" in name or int(layer[1]) < shape.layers


def _files(directory: Path) -> list[Path]:
    """What the index names; without one, all there are. `consolidated` files hold the same once more."""
    if (directory / INDEX).is_file():
        return [directory / name for name in _named(directory)]
    found = sorted(directory.glob("*.safetensors"))[:MOST_FILES]
    return [file for file in found if not file.name.startswith("consolidated")] or found


def _index(directory: Path) -> dict[str, Any]:
    file = directory / INDEX
    try:
        if file.stat().st_size > LONGEST_INDEX:
            raise BadPlan(f"{file} is larger than {LONGEST_INDEX} bytes")
        index = decoded(file.read_bytes(), file)
    except OSError as error:
        raise BadPlan(f"{file}: {error.strerror or error}") from error
    if not isinstance(index, dict):
        raise BadPlan(f"{file}: it must be an object")
    return index


def _named(directory: Path) -> list[str]:
    names = _index(directory).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BadPlan(f"{directory / INDEX}: weight_map must name the file of each tensor")
    files = sorted(set(names.values()))
    if len(files) > MOST_FILES:
        raise BadPlan(f"{directory / INDEX}: weight_map names more than {MOST_FILES} files")
    for name in files:
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise BadPlan(f"{directory / INDEX}: weight_map: {name[:80]!r} is no file of this directory")
    return files


def _total_size(directory: Path) -> int:
    metadata = _index(directory).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < 1 << 50:
        raise BadPlan(f"{directory / INDEX}: files are missing, and metadata.total_size does not tell their size")
    return size
