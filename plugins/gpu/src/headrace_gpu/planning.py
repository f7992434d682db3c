"""`headrace gpu plan`: from what was typed to what is printed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from . import report
from .advice import advice, sizes
from .devices import Device, parse_devices
from .flags import Serving, arguments, command, engine_name, environment, table
from .model import DTYPES, Model, Numbers, described, load
from .plan import Ask, Plan, best
from .present import present
from .quantization import Quantization, named
from .reader import NoGpu, Reader
from .timed import Timed
from .units import BadPlan, parse_bytes, parse_count

NUMBERS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")


def run(reader: Reader, limit: float, given: Mapping[str, Any]) -> int:
    """Plan and print. Returns the exit status.

    Raises:
        BadPlan: what was typed is wrong.
    """
    model = _model(given)
    ask, serving = _asked(model, given)
    if given["gpus"] is not None:
        devices = parse_devices(given["gpus"])
    else:
        try:
            devices = present(Timed(reader.read, limit).wait(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        except NoGpu as error:
            return _without(ask, str(error), given["as_json"])
        if not devices:
            return _without(ask, "there is no GPU here that can be read", given["as_json"])
    found = best(ask, devices, given["tp"], given["pp"])
    tips = [] if found.fits else advice(ask, found, devices, given["tp"], given["pp"])
    name = engine_name(given["name"], model.shape.name)
    if given["as_json"]:
        _print_json(ask, found, tips, serving, devices, name)
    else:
        _print(ask, found, tips, serving, devices, name, given["quantization"])
    return 0 if found.fits else 1


def _model(given: Mapping[str, Any]) -> Model:
    params = None if given["params"] is None else parse_count(given["params"])
    numbers = Numbers(params=params, **{name: given[name] for name in NUMBERS})
    if given["model"] is not None and numbers.given:
        raise BadPlan("give MODEL, or describe one by --params, --layers and so on: not both")
    if given["model"] is None and not numbers.given:
        raise BadPlan("which model? A directory, a config.json, a known name, or --params with --layers and so on")
    return described(numbers) if given["model"] is None else load(given["model"])


def _asked(model: Model, given: Mapping[str, Any]) -> tuple[Ask, Serving]:
    dtype = model.dtype if given["dtype"] == "auto" else given["dtype"]
    quantization = _quantization(model, given)
    as_stored = given["quantization"] is None
    stored = model.stored(DTYPES[dtype]) if as_stored else None
    ask = Ask(
        shape=model.shape,
        quantization=quantization,
        dtype=DTYPES[dtype],
        kv_bytes=1 if given["kv_dtype"] == "fp8" else DTYPES[dtype],
        stored=None if stored is None else stored.bytes,
        utilization=given["utilization"],
        context=given["tokens"],
        sequences=given["sequences"],
        slots=given["max_num_seqs"],
        batched=given["max_num_batched_tokens"],
        eager=given["enforce_eager"],
        overhead=None if given["overhead"] is None else parse_bytes(given["overhead"]),
    )
    if ask.slots is not None and ask.slots < ask.sequences:
        raise BadPlan(f"--max-num-seqs {ask.slots} is less than --sequences {ask.sequences}")
    told = "" if given["dtype"] == "auto" else dtype
    elsewhere = not as_stored and quantization.quantizes and not quantization.flag
    return ask, Serving(
        model="MODEL" if elsewhere else model.serve, dtype=told, kv_dtype=given["kv_dtype"], quantize=quantization.flag
    )


def _quantization(model: Model, given: Mapping[str, Any]) -> Quantization:
    if given["quantization"] is None:
        if given["group_size"] is not None:
            raise BadPlan("--group-size goes with --quantization awq or gptq")
        return model.quantization
    found = named(given["quantization"], given["group_size"])
    if found.experts_only and model.shape.experts is None:
        raise BadPlan(f"--quantization {found.name} is of experts alone, and {model.shape.name} has none")
    return found


def _without(ask: Ask, reason: str, as_json: bool) -> int:
    """There is nothing to plan for: say what would do."""
    found = sizes(ask)
    if as_json:
        _echo_json({"fits": False, "reason": reason, "model": report.model_facts(ask), "sizes": found})
        return 1
    click.echo(f"{reason}. Name devices with --gpus, as --gpus 2x24GiB; these would do:", err=True)
    click.echo(report.describe(ask))
    for line in report.sizes_lines(found):
        click.echo(line)
    return 1


def _print(
    ask: Ask,
    found: Plan,
    tips: Sequence[str],
    serving: Serving,
    devices: Sequence[Device],
    name: str,
    asked: str | None,
) -> None:
    click.echo(report.describe(ask))
    for note in ask.shape.notes:
        click.echo(f"Note: {note}.")
    for line in report.lines(ask, found, tips):
        click.echo(line)
    if found.fits:
        click.echo(f"\n{command(ask, found, serving, devices)}\n\n{table(ask, found, serving, name)}")
        if asked and ask.quantization.quantizes and not ask.quantization.flag:
            click.echo(f"\nMODEL: a checkpoint of it that is quantized so ({ask.quantization.name}).")
        elif serving.quantize == "fp8":
            click.echo("\nvLLM quantizes it while loading; older ones need room for all of it in 16 bits meanwhile.")


def _print_json(
    ask: Ask, found: Plan, tips: Sequence[str], serving: Serving, devices: Sequence[Device], name: str
) -> None:
    shown = report.document(ask, found, tips)
    if found.fits:
        shown["vllm"] = {"arguments": arguments(ask, found, serving), "environment": environment(found, devices)}
        shown["toml"] = table(ask, found, serving, name)
    _echo_json(shown)


def _echo_json(shown: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
