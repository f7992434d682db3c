"""`headrace vllm …`: the engines' commands, their adapters, sleep and wake. Needs no running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import GatewayError

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway

    from .command import Command
    from .config import VllmConfig
    from .desk import Desk

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BACKEND = click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Which vLLM backend; may be repeated. Not needed for one.",
)
ALL = click.option("--all", "everywhere", is_flag=True, help="Every vLLM backend.")


@click.group()
def vllm() -> None:
    """Engines that `headrace up` starts, and what can be asked of every vLLM backend: adapters, sleep and wake."""


@vllm.command("list")
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
            "model": engine.model,
            "gpus": engine.world_size,
            "devices": engine.devices,
            "url": engine.url,
            "answers": answers,
            "log": str(log_of(gateway, name)),
        }
        for (name, engine), answers in zip(config.engines.items(), asyncio.run(states()), strict=True)
    ]
    if not rows and not as_json:
        click.echo("There are no engines: add [plugins.vllm.engines.NAME]", err=True)
        return
    show(rows, as_json, title="Engines")


@vllm.command("command")
@click.argument("name")
@click.option("--node", type=click.Choice(["head", "worker"]), help="With several machines: on which of them.")
@click.option("--head", metavar="HOST", help="With --node worker: the head's address.")
@AS_JSON
@click.pass_context
def show_command(context: click.Context, name: str, node: str | None, head: str | None, as_json: bool) -> None:
    """Print how the engine NAME is started, to be pasted into a shell: without its secrets."""
    from .command import head_commands, serve_command, worker_commands

    config = _plugin(context)[1]
    if name not in config.engines:
        raise click.ClickException(f"there is no engine {name!r} (there are: {', '.join(config.engines) or 'none'})")
    engine = config.engines[name]
    if node == "worker" and not head:
        raise click.UsageError("--node worker needs --head HOST, the head's address")
    if node == "head":
        found: Sequence[Command] = head_commands(engine)
    elif node == "worker":
        found = worker_commands(engine, head or "")
    else:
        found = [serve_command(engine)]
    if as_json:
        described = [{"argv": each.argv, "env": each.environment, "secrets": each.secrets} for each in found]
        _print(described if node else described[0])
        return
    for each in found:
        click.echo(each.shown())
    missing = list(dict.fromkeys(secret for each in found for secret in each.secrets))
    if missing:
        click.echo(f"set these before, they are secrets: {', '.join(missing)}", err=True)


@vllm.group()
def lora() -> None:
    """List, load and unload LoRA adapters of running servers."""


@lora.command("list")
@BACKEND
@ALL
@AS_JSON
@click.pass_context
def list_adapters(context: click.Context, backends: tuple[str, ...], everywhere: bool, as_json: bool) -> None:
    """List the adapters that are loaded."""
    from headrace.tables import show

    async def ask(desk: Desk, target: Target) -> Any:
        return await desk.adapters(target)

    found, failed = _asked(context, backends, everywhere or not backends, ask)
    rows = [
        {"backend": backend, "name": each.name, "path": each.path or "", "base": each.base or ""}
        for backend, adapters in found.items()
        for each in adapters
    ]
    if rows or as_json:
        show(rows, as_json, title="Adapters")
    elif not failed:
        click.echo("No adapters are loaded.", err=True)
    context.exit(failed)


@lora.command()
@click.argument("name")
@click.argument("path")
@click.option("--replace", is_flag=True, help="Load it even if there is one of this name.")
@BACKEND
@ALL
@click.pass_context
def load(
    context: click.Context, name: str, path: str, replace: bool, backends: tuple[str, ...], everywhere: bool
) -> None:
    """Load an adapter under NAME. PATH is a folder that the server can read, or a name on the hub."""

    async def ask(desk: Desk, target: Target) -> None:
        await desk.load(target, name, path, replace=replace)

    _change(context, backends, everywhere, ask, "{}: loaded", f"{name} ({path})")


@lora.command()
@click.argument("name")
@BACKEND
@ALL
@click.pass_context
def unload(context: click.Context, name: str, backends: tuple[str, ...], everywhere: bool) -> None:
    """Unload the adapter NAME."""

    async def ask(desk: Desk, target: Target) -> None:
        await desk.unload(target, name)

    _change(context, backends, everywhere, ask, "{}: unloaded", name)


@vllm.command()
@click.option("--level", type=click.IntRange(1, 2), default=1, show_default=True, help="2 drops the weights as well.")
@BACKEND
@ALL
@click.pass_context
def sleep(context: click.Context, level: int, backends: tuple[str, ...], everywhere: bool) -> None:
    """Have a server give its GPU memory back. What it is asked meanwhile fails, and what it was at is cut."""

    async def ask(desk: Desk, target: Target) -> None:
        await desk.sleep(target, level)

    _change(context, backends, everywhere, ask, "{} sleeps", f"level {level}")


@vllm.command()
@BACKEND
@ALL
@click.pass_context
def wake(context: click.Context, backends: tuple[str, ...], everywhere: bool) -> None:
    """Wake a server."""

    async def ask(desk: Desk, target: Target) -> None:
        await desk.wake(target)

    _change(context, backends, everywhere, ask, "{} is awake")


@vllm.command()
@BACKEND
@AS_JSON
@click.pass_context
def status(context: click.Context, backends: tuple[str, ...], as_json: bool) -> None:
    """Say which servers sleep."""

    async def ask(desk: Desk, target: Target) -> bool:
        return await desk.is_sleeping(target)

    found, failed = _asked(context, backends, not backends, ask)
    if as_json:
        _print({backend: {"sleeping": sleeping} for backend, sleeping in found.items()})
    else:
        for backend, sleeping in found.items():
            click.echo(f"{backend} {'sleeps' if sleeping else 'is awake'}")
    context.exit(failed)


def _plugin(context: click.Context) -> tuple[Gateway, VllmConfig]:
    from headrace.cli import gateway_of

    gateway = gateway_of(context)
    config: VllmConfig = gateway.plugins["vllm"].config
    return gateway, config


def _asked(
    context: click.Context,
    backends: Sequence[str],
    everywhere: bool,
    ask: Callable[[Desk, Target], Awaitable[Any]],
) -> tuple[Mapping[str, Any], int]:
    """What each of the backends says, and the exit status: 1 if one has failed, which is told of."""
    from .desk import Desk

    gateway, _ = _plugin(context)
    desk = Desk(gateway)
    targets = _chosen(desk, backends, everywhere)

    async def answers() -> list[Any]:
        async with gateway.running(looking=True):
            return await asyncio.gather(*(ask(desk, target) for target in targets), return_exceptions=True)

    found = dict(zip((target.name for target in targets), asyncio.run(answers()), strict=True))
    for backend, answer in found.items():
        if isinstance(answer, GatewayError):
            click.echo(f"{backend}: {answer.message}", err=True)
        elif isinstance(answer, BaseException):
            raise answer
    well = {backend: answer for backend, answer in found.items() if not isinstance(answer, GatewayError)}
    return well, int(len(well) < len(found))


def _change(
    context: click.Context,
    backends: Sequence[str],
    everywhere: bool,
    ask: Callable[[Desk, Target], Awaitable[None]],
    words: str,
    what: str = "",
) -> None:
    """Have it done, tell of each backend that it is done, and the auditors of all of it."""
    from headrace.audit import noted

    with noted(context, f"{what} at {', '.join(backends) or 'all'}".strip()):
        done, failed = _asked(context, backends, everywhere, ask)
        for backend in done:
            click.echo(words.format(backend))
        context.exit(failed)


def _chosen(desk: Desk, backends: Sequence[str], everywhere: bool) -> list[Target]:
    """The backends that are meant. Raises click.ClickException."""
    known = desk.targets()
    unknown = [name for name in backends if name not in known]
    if unknown:
        raise click.ClickException(
            f"no vLLM backend is called {unknown[0]!r} (there are: {', '.join(known) or 'none'})"
        )
    if not known:
        raise click.ClickException('no backend of a model has provider = "vllm"')
    if not backends and not everywhere and len(known) > 1:
        raise click.UsageError(f"name one with --backend, or say --all (there are: {', '.join(known)})")
    return [known[name] for name in dict.fromkeys(backends)] or list(known.values())


def _print(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


__all__ = ["vllm"]
