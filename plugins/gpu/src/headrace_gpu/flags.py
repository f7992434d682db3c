"""A plan as vLLM's command line, and as the table of an engine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from .devices import Device
from .plan import Ask, Plan
from .units import BadPlan

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the flags beside a plan."""

    model: str
    dtype: str = ""
    """Empty: as the model says."""
    kv_dtype: str = "auto"
    quantize: str = ""
    """For --quantization, where vLLM is to quantize while it loads."""


def arguments(ask: Ask, plan: Plan, serving: Serving) -> list[str]:
    """What `vllm serve MODEL` is to be given: exactly what the plan reckons with."""
    words = [word for key, value in _settings(ask, plan, serving) for word in (_flag(key), f"{value}")]
    return words + (["--enforce-eager"] if ask.eager else [])


def environment(plan: Plan, devices: Sequence[Device]) -> dict[str, str]:
    """Which devices to show vLLM: needed where it is not to take the first ones."""
    chosen = [part.device for part in plan.parts]
    if not all(device.is_there for device in chosen) or [device.index for device in chosen] == [*range(len(chosen))]:
        return {}
    names = [device.uuid if device.index is None else str(device.index) for device in chosen]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}


def command(ask: Ask, plan: Plan, serving: Serving, devices: Sequence[Device]) -> str:
    """One line for a shell."""
    shown = [f"{name}={value}" for name, value in environment(plan, devices).items()]
    return " ".join([*shown, shlex.join(["vllm", "serve", serving.model, *arguments(ask, plan, serving)])])


def table(ask: Ask, plan: Plan, serving: Serving, name: str) -> str:
    """The same as `[plugins.vllm.engines.NAME]`."""
    lines = [
        f"[plugins.vllm.engines.{name if '.' not in name else _string(name)}]",
        f"model = {_string(serving.model)}",
    ]
    for key, value in _settings(ask, plan, serving):
        lines.append(f"{key} = {_string(value) if isinstance(value, str) else value}")
    indices = [part.device.index for part in plan.parts]
    if None not in indices:
        lines.append(f"devices = {indices}")
    return "\n".join(lines + (['args = ["--enforce-eager"]'] if ask.eager else []))


def engine_name(given: str | None, model: str) -> str:
    """The name of an engine: the one that was given, or one made of the model's.

    Raises:
        BadPlan: what was given cannot be one.
    """
    if given is None:
        return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:64] or "model"
    if NAME.fullmatch(given) is None:
        raise BadPlan(f"--name {given[:80]!r}: an engine's name has letters, digits, '.', '_' and '-'")
    return given


def _settings(ask: Ask, plan: Plan, serving: Serving) -> Iterator[tuple[str, str | int | float]]:
    """By the keys that the table has; the flags are called the same."""
    yield "tensor_parallel_size", plan.tp
    if plan.pp > 1:
        yield "pipeline_parallel_size", plan.pp
    yield "max_model_len", ask.context or plan.context
    yield "max_num_seqs", plan.slots
    yield "max_num_batched_tokens", plan.batched
    yield "gpu_memory_utilization", plan.utilization
    if serving.dtype:
        yield "dtype", serving.dtype
    if serving.quantize:
        yield "quantization", serving.quantize
    if serving.kv_dtype != "auto":
        yield "kv_cache_dtype", serving.kv_dtype


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _string(text: str) -> str:
    """A basic string of TOML, which is one of JSON but for a character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
