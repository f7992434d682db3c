"""The model that a plan is for: from a directory, a config.json, the table of known ones, or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from .fields import Fields
from .hfconfig import INNER, shape_of
from .known import find
from .quantization import Quantization, configured
from .safetensors import Stored, decoded, stored
from .shape import Shape
from .units import BadPlan
from .weights import counted

LONGEST_CONFIG = 16 * 1024**2
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of it."""

    shape: Shape
    serve: str
    """What `vllm serve` is to be given."""
    dtype: str
    """`bfloat16`, `float16` or `float32`: what it is loaded as."""
    quantization: Quantization
    """What its config.json says."""
    directory: Path | None = None

    def stored(self, dtype: int) -> Stored | None:
        """Its weights in files; None: there are none."""
        if self.directory is None:
            return None
        return stored(self.directory, self.shape, dtype, self.quantization.quantizes)


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """A model described by numbers alone. None: not given."""

    params: int | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate: int | None = None
    vocab: int | None = None

    @property
    def given(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


def load(name: str) -> Model:
    """By a path (a directory, or its config.json) or a known name.

    Raises:
        BadPlan: there is nothing, or it is not understood.
    """
    path = Path(name)
    if "\0" not in name and path.is_dir():
        return _described(_read(path / "config.json"), str(path), path.resolve().name, path)
    if "\0" not in name and path.is_file():
        return _described(_read(path), str(path.parent), path.resolve().parent.name, None)
    full, config = find(name)
    return _described(config, full, full.partition("/")[2], None)


def described(numbers: Numbers) -> Model:
    """By numbers.

    Raises:
        BadPlan: some are missing, or they do not go together.
    """
    needed = {
        "--layers": numbers.layers,
        "--hidden": numbers.hidden,
        "--heads": numbers.heads,
        "--vocab": numbers.vocab,
    }
    missing = [option for option, value in needed.items() if value is None]
    if numbers.params is None and numbers.intermediate is None:
        missing.append("--params (or --intermediate)")
    if missing:
        raise BadPlan(f"a model without a config.json needs {', '.join(missing)} as well")
    config = {
        "model_type": "llama",
        "num_hidden_layers": numbers.layers,
        "hidden_size": numbers.hidden,
        "num_attention_heads": numbers.heads,
        "num_key_value_heads": numbers.kv_heads,
        "head_dim": numbers.head_dim,
        "vocab_size": numbers.vocab,
        "intermediate_size": numbers.intermediate or 1,
    }
    shape = shape_of(config, "the model described")
    if numbers.params is not None:
        shape = _filled(shape, numbers.params, numbers.intermediate is not None)
    return Model(shape=shape, serve="MODEL", dtype="bfloat16", quantization=configured(None, shape.layers))


def _filled(shape: Shape, params: int, known: bool) -> Shape:
    """With an MLP as wide as makes up for so many parameters."""
    if known:
        return msgspec.structs.replace(shape, declared=params)
    per_width = 3 * shape.hidden * shape.layers
    width = 1 + (params - counted(shape)) // per_width
    if width < 1:
        raise BadPlan(f"--params {params}: embeddings and attention alone have {counted(shape) - per_width}")
    return msgspec.structs.replace(shape, declared=params, intermediate=width, intermediate_known=False)


def _described(config: Any, serve: str, name: str, directory: Path | None) -> Model:
    shape = shape_of(config, name if name.isprintable() else repr(name))
    inner = next((config[key] for key in INNER if config.get(key) is not None), config)
    found = next((each for each in map(_quantization, (config, inner)) if each is not None), None)
    return Model(
        shape=shape,
        serve=serve,
        dtype=_dtype(Fields(inner)) or _dtype(Fields(config)) or "bfloat16",
        quantization=configured(found, shape.layers),
        directory=directory,
    )


def _quantization(config: Any) -> Any:
    return config.get("quantization_config", config.get("compression_config"))


def _dtype(fields: Fields) -> str:
    """vLLM loads what is stored as float32 in half of it, unless it is told not to."""
    name = "torch_dtype" if "torch_dtype" in fields else "dtype"
    found = fields.text(name)
    if found and found not in DTYPES:
        raise BadPlan(f"config.json: {name} {found!r} is none of {', '.join(DTYPES)}")
    return {"float32": "float16", "half": "float16"}.get(found, found)


def _read(file: Path) -> Any:
    try:
        if file.exists() and not file.is_file():
            raise BadPlan(f"{file} is no file")
        if file.stat().st_size > LONGEST_CONFIG:
            raise BadPlan(f"{file} is larger than {LONGEST_CONFIG} bytes")
        return decoded(file.read_bytes(), file)
    except OSError as error:
        raise BadPlan(f"{file}: {error.strerror or error}") from error
