"""A plan for people, and for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headrace.tables import table

from .advice import Fewest
from .plan import Ask, Plan, shortage
from .quantization import Quantization
from .units import gib
from .weights import parameters

CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072, 262144)


def rows(plan: Plan) -> list[dict[str, Any]]:
    """One per device, in bytes."""
    return [
        {
            "device": part.device.label,
            "index": part.device.index,
            "stage": part.stage,
            "memory": part.device.total,
            "free": part.device.free,
            "budget": part.budget,
            "weights": part.weights,
            "activations": part.overhead.activations,
            "context": part.overhead.context,
            "graphs": part.overhead.graphs,
            "cache": max(part.cache, 0),
            "short": max(-part.cache, 0),
        }
        for part in plan.parts
    ]


def document(ask: Ask, plan: Plan, advice: Sequence[str]) -> dict[str, Any]:
    """Everything that is known of a plan, for JSON. Sizes in bytes."""
    return {
        "fits": plan.fits,
        "reason": "" if plan.fits else shortage(plan, ask),
        "advice": list(advice),
        "model": model_facts(ask),
        "tensor_parallel_size": plan.tp,
        "pipeline_parallel_size": plan.pp,
        "gpu_memory_utilization": plan.utilization,
        "max_num_seqs": plan.slots,
        "max_num_batched_tokens": plan.batched,
        "max_context": plan.context,
        "kv_cache_tokens": plan.tokens,
        "sequences": {str(context): plan.at_once(context) for context in contexts(ask, plan)},
        "devices": rows(plan),
    }


def model_facts(ask: Ask) -> dict[str, Any]:
    """What was found out of the model."""
    from .cache import bytes_per_token
    from .weights import bytes_per_stage, possible_tp

    shape, quantization = ask.shape, ask.quantization
    whole = ask.stored or bytes_per_stage(shape, quantization, ask.dtype, 1, 1)[0]
    return {
        "name": shape.name,
        "parameters": parameters(shape),
        "quantization": quantization.name,
        "weights": whole,
        "weights_exact": ask.stored is not None,
        "kv_bytes_per_token": shape.layers * bytes_per_token(shape, ask.kv_bytes),
        "layers": shape.layers,
        "sliding_layers": sum(shape.sliding),
        "max_context": shape.max_context,
        "tensor_parallel_sizes": possible_tp(shape, quantization),
        "notes": list(shape.notes),
    }


def contexts(ask: Ask, plan: Plan) -> list[int]:
    """For which numbers of tokens to say how many sequences there is room for."""
    asked = {ask.context} if ask.context else set()
    usual = {size for size in CONTEXTS if size <= plan.context}
    return sorted((usual | asked | {plan.context}) - {0})


def describe(ask: Ask) -> str:
    """The model in a line."""
    facts = model_facts(ask)
    source = "read from its files" if facts["weights_exact"] else "counted"
    sliding = f", {facts['sliding_layers']} of {facts['layers']} layers sliding" if facts["sliding_layers"] else ""
    return (
        f"{facts['name']}: {facts['parameters'] / 1e9:,.2f} billion parameters, {_quantized(ask.quantization)}: "
        f"{gib(facts['weights'])} of weights ({source}), {facts['kv_bytes_per_token']:,} bytes of KV cache per token"
        f"{sliding}"
    )


def lines(ask: Ask, plan: Plan, advice: Sequence[str]) -> Iterator[str]:
    """The plan for people: verdict, devices, what there is room for, or what would fit."""
    if plan.fits:
        split = f"on {plan.used} devices" if plan.used > 1 else "on one device"
        yield f"It fits {split}: context up to {plan.context:,} tokens{_each(ask)}."
    else:
        yield f"It does not fit. {shortage(plan, ask)}."
    if plan.utilization < ask.utilization:
        yield f"Others use memory here: vLLM may have {plan.utilization:g} of each device, not {ask.utilization:g}."
    yield ""
    yield from table([_row(part, plan) for part in rows(plan)])
    if plan.fits:
        yield ""
        yield from table([{"context": f"{size:,}", "sequences": plan.at_once(size)} for size in contexts(ask, plan)])
    elif advice:
        yield ""
        yield "What would fit:"
        yield from (f"  {each}" for each in advice)


def sizes_lines(found: Sequence[Fewest]) -> Iterator[str]:
    """How many devices of each size it takes."""
    if not found:
        yield "Not even 64 devices of 180GiB would do."
    rows = [
        {"devices": f"{each.count} x {each.device}", "tp": each.tp, "pp": each.pp, "context": f"{each.context:,}"}
        for each in found
    ]
    yield from table(rows)


def _row(row: dict[str, Any], plan: Plan) -> dict[str, Any]:
    name = row["device"] if row["index"] is None else f"{row['index']}: {row['device']}"
    stage = {"stage": row["stage"]} if plan.pp > 1 else {}
    beside = row["activations"] + row["context"] + row["graphs"]
    left = gib(row["cache"]) if not row["short"] else f"{gib(row['short'])} too little"
    return {
        "device": name,
        **stage,
        "memory": gib(row["memory"]),
        "may use": gib(row["budget"]),
        "weights": gib(row["weights"]),
        "overhead": gib(beside),
        "KV cache": left,
    }


def _each(ask: Ask) -> str:
    return f" for each of {ask.sequences} sequences" if ask.sequences > 1 else ""


def _quantized(quantization: Quantization) -> str:
    return f"quantized ({quantization.name})" if quantization.quantizes else "not quantized"
