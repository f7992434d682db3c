"""`headrace gpu`: the GPUs, and what fits on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from .quantization import NAMES

if TYPE_CHECKING:
    from . import Plugin


class Real(click.FloatRange):
    """A range that NaN is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SIZE = click.IntRange(1, 1 << 20)
TOKENS = click.IntRange(1, 1 << 30)


@click.group()
def gpu() -> None:
    """See the GPUs of this machine, and what fits on them."""


@gpu.command("list")
@AS_JSON
@click.option("--watch", type=Real(0.1, 86_400), metavar="SECONDS", help="Again and again, until interrupted.")
@click.pass_context
def list_gpus(context: click.Context, as_json: bool, watch: float | None) -> None:
    """List the GPUs: memory, load, temperature, power, NVLinks, processes. Needs no running gateway.

    Exit status 1 if the driver cannot be asked.
    """
    from .listing import show
    from .reader import NoGpu

    plugin = _plugin(context)
    try:
        show(plugin.reader(), plugin.config.timeout, as_json, watch)
    except NoGpu as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        context.exit(0)


@gpu.command()
@click.argument("model", required=False)
@click.option(
    "--gpus", metavar="LIST", help="Devices to think of: 32GiB,24GiB, 8x80GiB, 2xh100. Default: those there are."
)
@click.option("--tp", type=click.IntRange(1, 1024), help="Tensor parallel size. Default: what suits.")
@click.option("--pp", type=click.IntRange(1, 64), default=1, show_default=True, help="Pipeline parallel size.")
@click.option("--context", "tokens", type=TOKENS, help="Tokens that each sequence must have room for.")
@click.option("--sequences", type=SIZE, default=1, show_default=True, help="Sequences at a time that need it.")
@click.option(
    "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), default="auto", show_default=True
)
@click.option("--quantization", metavar="KIND", help=f"In place of what config.json says: {', '.join(NAMES)}.")
@click.option(
    "--group-size", type=click.IntRange(1, 65536), help="Weights that share a scale, for awq and gptq.  [128]"
)
@click.option(
    "--kv-dtype", type=click.Choice(["auto", "fp8"]), default="auto", show_default=True, help="Of the KV cache."
)
@click.option(
    "--gpu-memory-utilization", "utilization", type=Real(0.01, 1.0), default=0.9, show_default=True,
    help="Part of each device that vLLM may use.",
)  # fmt: skip
@click.option("--max-num-seqs", type=SIZE, help="vLLM's. Default: what the cache has room for.")
@click.option("--max-num-batched-tokens", type=SIZE, help="vLLM's. Default: as vLLM chooses it.")
@click.option("--enforce-eager", is_flag=True, help="vLLM's: no CUDA graphs, which saves their memory.")
@click.option("--overhead", metavar="SIZE", help="Memory beside weights and cache, measured, in place of the estimate.")
@click.option("--params", metavar="COUNT", help="A model without a config.json: its parameters, as 70B.")
@click.option("--layers", type=click.IntRange(1, 4096), help="The same: its layers.")
@click.option("--hidden", type=SIZE, help="The same: hidden_size.")
@click.option("--heads", type=click.IntRange(1, 65536), help="The same: attention heads.")
@click.option("--kv-heads", type=click.IntRange(1, 65536), help="The same: KV heads.  [as heads]")
@click.option("--head-dim", type=click.IntRange(1, 65536), help="The same: size of a head.  [hidden / heads]")
@click.option("--intermediate", type=SIZE, help="The same: width of the MLP.  [from --params]")
@click.option("--vocab", type=click.IntRange(1, 1 << 24), help="The same: tokens in its vocabulary.")
@click.option("--name", metavar="NAME", help="Of the engine, in the TOML that is printed.  [the model's]")
@AS_JSON
@click.pass_context
def plan(context: click.Context, /, **given: Any) -> None:
    """Say whether MODEL fits on GPUs, how much context it has there, and with which flags of vLLM.

    MODEL is a directory with a config.json (and safetensors files: then weights are exact), a config.json, or the name
    of a well-known model such as llama-3.1-70b. Nothing is fetched.

    Exit status 0 if it fits, 1 if it does not, 2 for a wrong call.
    """
    from .planning import run
    from .units import BadPlan

    plugin = _plugin(context)
    try:
        status = run(plugin.reader(), plugin.config.timeout, given)
    except BadPlan as error:
        raise click.UsageError(str(error), context) from error
    context.exit(status)


def _plugin(context: click.Context) -> Plugin:
    from headrace.cli import gateway_of

    found: Plugin = gateway_of(context).plugins["gpu"]
    return found
