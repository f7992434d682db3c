"""How many bytes weights take, by the way they are quantized. The sources stand in docs/gpu.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .units import BadPlan, ceil_div

GGUF_BITS = {
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
    "Q2_K_S": 2.9697, "Q2_K": 3.1593, "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "Q3_K_S": 3.6429, "IQ3_S": 3.6606,
    "IQ3_M": 3.7628, "Q3_K_M": 3.9960, "Q3_K_L": 4.2979, "IQ4_XS": 4.4597, "Q4_K_S": 4.6672, "IQ4_NL": 4.6818,
    "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip
"""Bits per weight over a whole file, measured on Llama 3.1 8B by llama.cpp."""


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """What one weight takes in a quantized matrix, and which matrices are."""

    name: str
    bits: int = 16
    """Of a weight; of all others, 16-bit ones included, the model's dtype decides."""
    group: int = 0
    """Inputs that share a scale; 0: all of a row."""
    scale: float = 0.0
    """Bytes per scale, zero points included."""
    rows: int = 1
    """Outputs that share a scale: more than one where scales are for blocks."""
    order: int = 0
    """Bytes per input for the order in which inputs are grouped (GPTQ)."""
    experts_only: bool = False
    """As vLLM's MXFP4: it leaves all other matrices as they are."""
    attention: bool = True
    """Whether the attention's matrices are quantized."""
    whole: float = 0.0
    """Bits per weight of all matrices, embeddings included (GGUF); 0: does not apply."""
    aligned: bool = False
    """Whether vLLM refuses parts of a matrix that cut a group."""
    flag: str = ""
    """For vLLM's `--quantization`, where it quantizes while loading."""

    @property
    def quantizes(self) -> bool:
        return self.name != "none"

    def covers(self, part: str) -> bool:
        """Whether matrices of this kind are quantized: `attention`, `mlp`, `expert`; others never are, but by GGUF."""
        if not self.quantizes:
            return False
        if self.whole:
            return part in ("attention", "mlp", "expert", "embedding", "router")
        return part == "expert" or (
            not self.experts_only and (part == "mlp" or (part == "attention" and self.attention))
        )

    def bytes_of(self, rows: int, columns: int) -> int:
        """Of one quantized matrix: `rows` outputs, `columns` inputs."""
        if self.whole:
            return int(rows * columns * self.whole / 8 + 0.5)
        groups = ceil_div(columns, self.group) if self.group else 1
        scales = ceil_div(rows, self.rows) * groups
        return ceil_div(rows * columns * self.bits, 8) + int(scales * self.scale + 0.5) + columns * self.order


NONE = Quantization(name="none")
_KINDS = {
    "none": NONE,
    "fp8": Quantization(name="fp8", bits=8, scale=4.0, flag="fp8"),
    "int8": Quantization(name="int8", bits=8, scale=4.0),
    "awq": Quantization(name="awq", bits=4, group=128, scale=2.5, aligned=True),
    "gptq": Quantization(name="gptq", bits=4, group=128, scale=2.5, order=4, aligned=True),
    "nf4": Quantization(name="nf4", bits=4, group=64, scale=4.0, flag="bitsandbytes"),
    "mxfp4": Quantization(name="mxfp4", bits=4, group=32, scale=1.0, experts_only=True),
    "nvfp4": Quantization(name="nvfp4", bits=4, group=16, scale=1.0),
}
NAMES = (*_KINDS, *GGUF_BITS)


def named(name: str, group: int | None = None) -> Quantization:
    """By the name that people use: `awq`, `Q4_K_M`. `group`: inputs that share a scale, for `awq` and `gptq`.

    Raises:
        BadPlan: there is none of that name, or it has no groups.
    """
    if name.upper() in GGUF_BITS:
        found = Quantization(name=name.upper(), whole=GGUF_BITS[name.upper()])
    elif name.lower() in _KINDS:
        found = _KINDS[name.lower()]
    else:
        raise BadPlan(f"quantization {name[:40]!r} is not known; there are: {', '.join(NAMES)}")
    if group is None:
        return found
    if found.name not in ("awq", "gptq"):
        raise BadPlan(f"a group size goes with awq and gptq, not with {found.name}")
    return msgspec.structs.replace(found, group=group)


def configured(config: Any, layers: int) -> Quantization:
    """What `quantization_config` of config.json says.

    Raises:
        BadPlan: it is none that is known; the message names the field.
    """
    if config is None:
        return NONE
    if not isinstance(config, Mapping):
        raise BadPlan("config.json: quantization_config must be an object")
    method = config.get("quant_method")
    if method in ("awq", "gptq"):
        found = _grouped(config, method)
    elif method == "compressed-tensors":
        found = _compressed(config)
    elif method in ("fp8", "fbgemm_fp8"):
        found = _fp8(config)
    elif method == "bitsandbytes":
        found = _bitsandbytes(config)
    elif method == "mxfp4":
        found = _KINDS["mxfp4"]
    elif method in ("modelopt", "modelopt_fp4"):
        found = _KINDS["nvfp4" if "4" in str(config.get("quant_algo", "")) or method == "modelopt_fp4" else "fp8"]
    else:
        raise BadPlan(f"config.json: quantization_config.quant_method: {str(method)[:40]!r} is not known to this plan")
    spares = _spares_attention(config, layers)
    return msgspec.structs.replace(found, attention=not spares, flag="")


def _spares_attention(config: Mapping[str, Any], layers: int) -> bool:
    """Whether the attention of every layer is left as it is: by a pattern, or each layer by name."""
    names = config.get("modules_to_not_convert") or config.get("ignore") or config.get("ignored_layers") or ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    about = [name for name in names if "self_attn" in name]
    patterns = any(not any(character.isdigit() for character in name) for name in about)
    return patterns or len(about) >= layers


def _grouped(config: Mapping[str, Any], method: str) -> Quantization:
    bits, group = config.get("bits", config.get("w_bit", 4)), config.get("group_size", config.get("q_group_size", 128))
    if not _is_count(bits) or bits not in (2, 3, 4, 8):
        raise BadPlan("config.json: quantization_config.bits must be 2, 3, 4 or 8")
    if group != -1 and (not _is_count(group) or not 1 <= group <= 65536):
        raise BadPlan("config.json: quantization_config.group_size must be -1 or from 1 to 65536")
    kind, size = _KINDS[method], max(group, 0)
    return msgspec.structs.replace(kind, bits=bits, group=size, scale=2 + bits / 8, aligned=size > 0)


def _fp8(config: Mapping[str, Any]) -> Quantization:
    block = config.get("weight_block_size")
    if block is None:
        return _KINDS["fp8"]
    if not isinstance(block, list) or len(block) != 2 or not all(_is_count(n) and 1 <= n <= 65536 for n in block):
        raise BadPlan("config.json: quantization_config.weight_block_size must be two numbers, as [128, 128]")
    return msgspec.structs.replace(_KINDS["fp8"], rows=block[0], group=block[1], aligned=True)


def _bitsandbytes(config: Mapping[str, Any]) -> Quantization:
    if config.get("load_in_8bit"):
        return _KINDS["int8"]
    # The scales of 256 groups are themselves quantized to a byte each, with one of four bytes for them all.
    doubled = bool(config.get("bnb_4bit_use_double_quant"))
    return msgspec.structs.replace(_KINDS["nf4"], scale=1 + 4 / 256) if doubled else _KINDS["nf4"]


def _compressed(config: Mapping[str, Any]) -> Quantization:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise BadPlan("config.json: quantization_config.config_groups must be an object with one group or more")
    first = next(iter(groups.values()))
    weights = first.get("weights") if isinstance(first, Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    if not isinstance(weights, Mapping) or not _is_count(bits) or bits not in (4, 8):
        raise BadPlan("config.json: quantization_config.config_groups: weights.num_bits must be 4 or 8")
    group = weights.get("group_size")
    if group is not None and (not _is_count(group) or not -1 <= group <= 65536):
        raise BadPlan("config.json: quantization_config.config_groups: weights.group_size must be up to 65536")
    if bits == 8:
        return _KINDS["fp8" if weights.get("type") == "float" else "int8"]
    if weights.get("type") == "float":
        return msgspec.structs.replace(_KINDS["nvfp4"], group=max(group or 16, 1))
    size = max(group or 0, 0)
    scale = 2.0 if weights.get("symmetric", True) else 2.5
    return Quantization(name="w4a16", bits=4, group=size, scale=scale, aligned=size > 0)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
