"""`headrace cache`: how the cache of a running gateway stands, and forgetting what it keeps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def cache() -> None:
    """See how the cache stands, and clear it."""


@cache.command()
@AS_JSON
@click.pass_context
def stats(context: click.Context, as_json: bool) -> None:
    """Show what became of requests since the start, and what is kept, of all workers of a running gateway."""
    from headrace.tables import show

    from .marks import Board
    from .report import report, rows

    gateway, _ = plugin_of(context)
    standings = Board(gateway.runtime_dir).read()
    if not standings:
        raise click.ClickException(f"no gateway with this configuration runs (looked in {gateway.runtime_dir})")
    found = report(standings)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    show(rows(found), False, title="Cache")
    if found["server"] is not None:
        click.echo(f"server: {found['server']}")


@cache.command()
@click.option("--model", help="Only the answers of this model, by any of its names.")
@AS_JSON
@click.pass_context
def clear(context: click.Context, model: str | None, as_json: bool) -> None:
    """Forget what is kept: in all workers of a running gateway, and at the server."""
    from headrace.audit import noted

    with noted(context, model or "all models"):
        _clear(context, model, as_json)


def _clear(context: click.Context, model: str | None, as_json: bool) -> None:
    from .desk import clear_server
    from .marks import Marks

    gateway, plugin = plugin_of(context)
    name = known(gateway, model) if model is not None else None
    try:
        gateway.make_dirs()
        Marks(gateway.runtime_dir).clear(name)
    except OSError as error:
        raise click.ClickException(f"cannot write in {gateway.runtime_dir}: {error.strerror}") from error
    done = asyncio.run(clear_server(plugin.shared(), name))
    if as_json:
        click.echo('{"cleared": true}' if done else '{"cleared": false}')
    elif done:
        click.echo(f"Cleared {f'the answers of {name!r}' if name is not None else 'everything'}.", err=True)
    if not done:
        raise click.ClickException("the cache's server does not answer: what it keeps is still there")


def known(gateway: Gateway, model: str) -> str:
    """The model's own name. Raises click.ClickException if there is none."""
    from headrace.errors import ModelNotFound

    from .marks import Board

    try:
        return gateway.models.find(model).name
    except ModelNotFound as error:
        found = {name for standing in Board(gateway.runtime_dir).read() for name in standing.models}
        if model in found:  # a backend has listed it while the gateway ran
            return model
        raise click.ClickException(error.message) from error


def plugin_of(context: click.Context) -> tuple[Gateway, Plugin]:
    """The gateway and the plugin of this command. Raises click.ClickException if the plugin is not enabled."""
    from headrace.cli import gateway_of

    gateway = gateway_of(context)
    plugin: Any = gateway.plugins.get("cache")
    if plugin is None:
        raise click.ClickException("The plugin 'cache' is not enabled: add [plugins.cache] to the configuration.")
    return gateway, plugin
