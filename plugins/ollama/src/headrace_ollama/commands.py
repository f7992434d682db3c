"""`headrace ollama …`: which models the servers have, get and let go. Needs no running gateway."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import GatewayError

if TYPE_CHECKING:
    from headrace.exchange import Target

    from .desk import Desk, Progress, Shown

STEP_PERCENT = 10
"""How often progress is told where nobody looks at a terminal."""
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BACKEND = click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Which Ollama backend; may be repeated. Not needed for one.",
)
ALL = click.option("--all", "everywhere", is_flag=True, help="Every Ollama backend.")
MODEL = click.argument("model", required=False, default="")


@click.group()
def ollama() -> None:
    """Models of Ollama servers: list, pull, show, remove and unload them."""


@ollama.command()
@MODEL
@BACKEND
@ALL
@AS_JSON
@click.pass_context
def pull(context: click.Context, model: str, backends: tuple[str, ...], everywhere: bool, as_json: bool) -> None:
    """Have a server download MODEL; left out, the model that the configuration names for it."""

    async def ask(desk: Desk, target: Target) -> dict[str, str]:
        wanted = _model(model, target)
        await desk.pull(target, wanted, _Meter(target.name).show)
        return {"backend": target.name, "model": wanted, "status": "pulled"}

    _tell(context, _asked(context, backends, everywhere, ask), as_json)


@ollama.command("list")
@BACKEND
@AS_JSON
@click.pass_context
def list_models(context: click.Context, backends: tuple[str, ...], as_json: bool) -> None:
    """List the models that the servers have."""
    from headrace.tables import show

    async def ask(desk: Desk, target: Target) -> Any:
        return await desk.models(target)

    found, failed = _asked(context, backends, not backends, ask)
    rows = [
        {
            "backend": backend,
            "name": each.name,
            "size": each.size if as_json else _size(each.size),
            "parameters": each.details.get("parameter_size") or "",
            "quantization": each.details.get("quantization_level") or "",
            "modified": each.modified_at if as_json else each.modified_at[:10],
        }
        for backend, models in found.items()
        for each in models
    ]
    if rows or as_json:
        show(rows, as_json, title="Models")
    elif not failed:
        click.echo("There are no models: headrace ollama pull MODEL", err=True)
    context.exit(failed)


@ollama.command("show")
@MODEL
@BACKEND
@AS_JSON
@click.pass_context
def show_model(context: click.Context, model: str, backends: tuple[str, ...], as_json: bool) -> None:
    """Tell what MODEL is and can do; left out, the model that the configuration names."""

    async def ask(desk: Desk, target: Target) -> dict[str, Any]:
        wanted = _model(model, target)
        return {"backend": target.name, "model": wanted, **_described(await desk.show(target, wanted))}

    found, failed = _asked(context, backends, not backends, ask)
    if as_json:
        _print(list(found.values()))
    else:
        for each in found.values():
            click.echo("\n".join(f"{key}: {_plain(value)}" for key, value in each.items()))
    context.exit(failed)


@ollama.command()
@MODEL
@BACKEND
@ALL
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@click.pass_context
def rm(
    context: click.Context, model: str, backends: tuple[str, ...], everywhere: bool, yes: bool, as_json: bool
) -> None:
    """Delete MODEL from a server's disk."""
    if not model:
        raise click.UsageError("name the MODEL")
    if not yes:
        click.confirm(f"Delete {model}?", abort=True, err=True)

    async def ask(desk: Desk, target: Target) -> dict[str, str]:
        await desk.remove(target, model)
        return {"backend": target.name, "model": model, "status": "removed"}

    _tell(context, _asked(context, backends, everywhere, ask), as_json)


@ollama.command()
@BACKEND
@AS_JSON
@click.pass_context
def ps(context: click.Context, backends: tuple[str, ...], as_json: bool) -> None:
    """List the models that are in memory, and until when."""
    from headrace.tables import show

    async def ask(desk: Desk, target: Target) -> Any:
        return await desk.running(target)

    found, failed = _asked(context, backends, not backends, ask)
    rows = [
        {
            "backend": backend,
            "name": each.name,
            "size": each.size if as_json else _size(each.size),
            "on_gpu": f"{100 * each.size_vram // each.size if each.size else 0} %",
            "context": each.context_length if as_json else each.context_length or "",
            "until": each.expires_at if as_json else each.expires_at[:19],
        }
        for backend, models in found.items()
        for each in models
    ]
    if rows or as_json:
        show(rows, as_json, title="In memory")
    elif not failed:
        click.echo("No model is in memory.", err=True)
    context.exit(failed)


@ollama.command()
@MODEL
@BACKEND
@ALL
@AS_JSON
@click.pass_context
def unload(context: click.Context, model: str, backends: tuple[str, ...], everywhere: bool, as_json: bool) -> None:
    """Have a server take MODEL out of its memory; left out, the model that the configuration names."""

    async def ask(desk: Desk, target: Target) -> dict[str, str]:
        wanted = _model(model, target)
        await desk.unload(target, wanted)
        return {"backend": target.name, "model": wanted, "status": "unloaded"}

    _tell(context, _asked(context, backends, everywhere, ask), as_json)


def _model(given: str, target: Target) -> str:
    name = given or target.model
    if not name:
        raise click.UsageError(f"name the MODEL: the configuration names none for {target.name}")
    return name


def _described(shown: Shown) -> dict[str, Any]:
    """Capabilities first: they say what can be asked of a model."""
    thinking = shown.thinking
    return {
        "capabilities": shown.capabilities,
        "context_length": shown.context_length,
        "family": shown.details.family,
        "parameters": shown.details.parameter_size,
        "quantization": shown.details.quantization_level,
        **({"think_levels": thinking.values, "think_default": thinking.default} if thinking is not None else {}),
        **({"remote_host": shown.remote_host} if shown.remote_host else {}),
        "hint": _hint(shown.capabilities),
        "settings": {
            name: value.strip()
            for name, _, value in (line.strip().partition(" ") for line in shown.parameters.splitlines())
            if name
        },
    }


def _hint(capabilities: Sequence[str]) -> str:
    """What the model's table of the configuration may say of it."""
    known = {"tools": "tools", "vision": "vision", "audio": "audio", "thinking": "reasoning"}
    said = ", ".join(f"{name} = true" for capability, name in known.items() if capability in capabilities)
    return f"capabilities = {{ {said} }}" if said else ""


class _Meter:
    """Tells how far a download has come: a line that changes on a terminal, else one for every tenth of each file."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._live = sys.stderr.isatty()
        self._told = ("", -STEP_PERCENT)

    def show(self, progress: Progress) -> None:
        percent = 100 * progress.completed // progress.total if progress.total else None
        status, before = self._told
        if progress.status == status and (percent is None or percent < before + (1 if self._live else STEP_PERCENT)):
            return
        self._told = progress.status, percent or 0
        text = f"{self._backend}: {progress.status}"
        if percent is not None:
            text += f": {percent} % of {_size(progress.total)}"
        same = self._live and progress.status == status
        click.echo(("\x1b[1A\x1b[2K" if same else "") + text, err=True)


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return {True: "true", False: "false", None: ""}[value] if value is None or isinstance(value, bool) else str(value)


def _asked(
    context: click.Context,
    backends: Sequence[str],
    everywhere: bool,
    ask: Callable[[Desk, Target], Awaitable[Any]],
) -> tuple[Mapping[str, Any], int]:
    """What each of the backends says, and the exit status: 1 if one has failed, which is told of."""
    from headrace.cli import gateway_of

    from .desk import Desk

    gateway = gateway_of(context)
    desk = Desk(gateway)
    targets = _chosen(desk, backends, everywhere)

    async def answers() -> list[Any]:
        async with gateway.running(looking=True):
            return await asyncio.gather(*(ask(desk, target) for target in targets), return_exceptions=True)

    found = dict(zip((target.name for target in targets), asyncio.run(answers()), strict=True))
    for backend, answer in found.items():
        if isinstance(answer, GatewayError):
            words = answer.message
            click.echo(words if words.startswith(backend) else f"{backend}: {words}", err=True)
        elif isinstance(answer, BaseException):
            raise answer
    well = {backend: answer for backend, answer in found.items() if not isinstance(answer, GatewayError)}
    return well, int(len(well) < len(found))


def _chosen(desk: Desk, backends: Sequence[str], everywhere: bool) -> list[Target]:
    """The backends that are meant. Raises click.ClickException."""
    known = desk.targets()
    unknown = [name for name in backends if name not in known]
    if unknown:
        raise click.ClickException(
            f"no Ollama backend is called {unknown[0]!r} (there are: {', '.join(known) or 'none'})"
        )
    if not known:
        raise click.ClickException('no backend of a model has provider = "ollama"')
    if not backends and not everywhere and len(known) > 1:
        raise click.UsageError(f"name one with --backend, or say --all (there are: {', '.join(known)})")
    return [known[name] for name in dict.fromkeys(backends)] or list(known.values())


def _tell(context: click.Context, asked: tuple[Mapping[str, Any], int], as_json: bool) -> None:
    """Tell of each backend what has been done."""
    found, failed = asked
    if as_json:
        _print(list(found.values()))
    else:
        for each in found.values():
            click.echo(f"{each['backend']}: {each['model']} {each['status']}")
    context.exit(failed)


def _print(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


__all__ = ["ollama"]
