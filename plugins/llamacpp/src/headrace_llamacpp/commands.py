"""`headrace llamacpp …`: the engines' commands, and what the servers are at. Needs no running gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click
import msgspec

from headrace.errors import GatewayError

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway

    from .config import LlamacppConfig

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Slot(msgspec.Struct):
    """One of `/slots`."""

    is_processing: bool = False


@click.group()
def llamacpp() -> None:
    """Engines that `headrace up` starts, and what llama.cpp servers are at."""


@llamacpp.command("list")
@AS_JSON
@click.pass_context
def list_engines(context: click.Context, as_json: bool) -> None:
    """List the engines of the configuration, and whether they answer."""
    from headrace.engines import is_ready, local
    from headrace.tables import show

    from .launcher import log_of

    gateway, config = _plugin(context)

    async def states() -> list[bool]:
        return await asyncio.gather(*(is_ready(local(each.host), each.port) for each in config.engines.values()))

    rows = [
        {
            "name": name,
            "model": engine.served_name,
            "file": str(engine.path),
            "url": engine.url,
            "answers": answers,
            "log": str(log_of(gateway, name)),
        }
        for (name, engine), answers in zip(config.engines.items(), asyncio.run(states()), strict=True)
    ]
    if not rows and not as_json:
        click.echo("There are no engines: add [plugins.llamacpp.engines.NAME]", err=True)
        return
    show(rows, as_json, title="Engines")


@llamacpp.command("command")
@click.argument("name")
@AS_JSON
@click.pass_context
def show_command(context: click.Context, name: str, as_json: bool) -> None:
    """Print how the engine NAME is started, to be pasted into a shell: without its secrets."""
    from .command import serve_command

    config = _plugin(context)[1]
    if name not in config.engines:
        raise click.ClickException(f"there is no engine {name!r} (there are: {', '.join(config.engines) or 'none'})")
    found = serve_command(config.engines[name])
    if as_json:
        _print({"argv": found.argv, "secrets": found.secrets})
        return
    click.echo(found.shown())
    if found.secrets:
        click.echo(f"set these before, they are secrets: {', '.join(found.secrets)}", err=True)


@llamacpp.command()
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Which backend; may be repeated.")
@AS_JSON
@click.pass_context
def status(context: click.Context, backends: tuple[str, ...], as_json: bool) -> None:
    """Tell what the servers have loaded, and how many of their slots are busy."""
    from headrace.tables import show

    gateway, _ = _plugin(context)
    known = {target.name: target for target in gateway.models.targets if target.provider == "llamacpp"}
    unknown = [name for name in backends if name not in known]
    if unknown:
        raise click.ClickException(f"no llama.cpp backend is called {unknown[0]!r} (there are: {', '.join(known)})")
    if not known:
        raise click.ClickException('no backend of a model has provider = "llamacpp"')
    chosen = [known[name] for name in dict.fromkeys(backends)] or list(known.values())

    async def answers() -> list[dict[str, Any] | BaseException]:
        async with gateway.running(looking=True):
            return await asyncio.gather(*(_state(gateway, target) for target in chosen), return_exceptions=True)

    found = asyncio.run(answers())
    for target, answer in zip(chosen, found, strict=True):
        if isinstance(answer, GatewayError):
            click.echo(f"{target.name}: {answer.message}", err=True)
        elif isinstance(answer, BaseException):
            raise answer
    rows = [answer for answer in found if not isinstance(answer, BaseException)]
    if rows or as_json:
        show(rows, as_json, title="Servers")
    context.exit(int(len(rows) < len(found)))


async def _state(gateway: Gateway, target: Target) -> dict[str, Any]:
    """Raises GatewayError."""
    from .health import get, props

    known = await props(gateway, target)
    try:
        slots = msgspec.json.decode(await get(gateway, target, "/slots"), type=list[Slot])
        busy: int | str = sum(slot.is_processing for slot in slots)
    except (GatewayError, msgspec.MsgspecError):  # a server with --no-slots
        busy = ""
    return {
        "backend": target.name,
        "model": known.model_alias or known.model_path,
        "slots": known.total_slots,
        "busy": busy,
        "context": known.default_generation_settings.n_ctx or "",
        "build": known.build_info,
    }


def _plugin(context: click.Context) -> tuple[Gateway, LlamacppConfig]:
    from headrace.cli import gateway_of

    gateway = gateway_of(context)
    config: LlamacppConfig = gateway.plugins["llamacpp"].config
    return gateway, config


def _print(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


__all__ = ["llamacpp"]
