"""`headrace keys`: create, change, rotate and revoke keys. A running gateway follows within `refresh_seconds`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import HeadraceError

from .options import (
    CLEARABLE,
    ROLE,
    changes_of,
    checked_name,
    key_options,
    seconds,
    seconds_or_none,
)

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin
    from .changes import Changes
    from .desk import Desk
    from .record import Record

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def keys() -> None:
    """Create, list, change, rotate and revoke API keys."""


@keys.command()
@click.argument("name", callback=checked_name)
@ROLE
@key_options
@AS_JSON
@click.pass_context
def create(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Create a key and print it, this once."""
    gateway, plugin = plugin_of(ctx)
    changes = _known(changes_of(options), gateway)
    with at_desk(ctx) as desk:
        record, key = desk.create(changes)
    if as_json:
        _print({**shown(record, plugin), "key": key.reveal()})
        return
    click.echo(key.reveal())
    click.echo(f"This is the key {record.name!r} (id {record.id}). Keep it now: it cannot be shown again.", err=True)
    click.echo(f"It works at gateways that keep their keys in {plugin.database}.", err=True)


@keys.command("list")
@click.option("--team", help="Only the keys of this team.")
@AS_JSON
@click.pass_context
def list_keys(ctx: click.Context, team: str | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    from .display import lines
    from .store import Store

    gateway, plugin = plugin_of(ctx)
    with plain_errors():
        gateway.make_dirs()
        with Store.open(plugin.database) as store:
            records = [record for record in store.records() if team is None or record.team == team]
    described = [shown(record, plugin) for record in records]
    if as_json:
        _print(described)
    elif described:
        for line in lines(described):
            click.echo(line)
    else:
        hint = f"The team {team!r} has no keys." if team else "There are no keys yet: headrace keys create NAME"
        click.echo(hint, err=True)


@keys.command("set")
@click.argument("id_or_name")
@click.option("--name", callback=checked_name, help="Another name.")
@ROLE
@key_options
@click.option("--clear", multiple=True, type=click.Choice(CLEARABLE), help="Take this away; may be repeated.")
@AS_JSON
@click.pass_context
def set_key(ctx: click.Context, /, id_or_name: str, clear: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Change a key, by its id or its name; what is not given stays.

    --limit, --budget and --metadata add to what is there, and NAME= takes one away; --model and --endpoint replace.
    """
    from .desk import changed_fields, find

    gateway, plugin = plugin_of(ctx)
    with at_desk(ctx) as desk:
        before = find(desk.records, id_or_name)
        after = desk.change(before, _known(changes_of(options, before, clear), gateway))
    if as_json:
        _print(shown(after, plugin))
    else:
        changed = ", ".join(changed_fields(before, after)) or "nothing"
        click.echo(f"Changed {changed} of the key {after.name!r} (id {after.id}).", err=True)


@keys.command()
@click.argument("id_or_name")
@click.option(
    "--grace", default="24h", callback=seconds_or_none, show_default=True, help="How long the old secret still works."
)
@AS_JSON
@click.pass_context
def rotate(ctx: click.Context, id_or_name: str, grace: float, as_json: bool) -> None:
    """Give a key a new secret and print it, this once. Everything else stays; --grace 0 ends the old secret at once."""
    from .desk import find
    from .record import moment

    _, plugin = plugin_of(ctx)
    with at_desk(ctx) as desk:
        done = desk.rotate(find(desk.records, id_or_name), grace)
    record = done.record
    if as_json:
        _print({**shown(record, plugin), "key": done.key.reveal()})
        return
    click.echo(done.key.reveal())
    click.echo(f"This is the new secret of the key {record.name!r} (id {record.id}). Keep it now.", err=True)
    until = f"works until {moment(record.former_until)}" if record.former_until else "does not work any more"
    click.echo(f"The secret before {until}.", err=True)
    if done.ended:
        click.echo("The one before that, which was still in its time of grace, has ended now.", err=True)


@keys.command()
@click.argument("id_or_name")
@AS_JSON
@click.pass_context
def revoke(ctx: click.Context, id_or_name: str, as_json: bool) -> None:
    """Revoke a key at once and for good, by its id or its name."""
    from .desk import find

    _, plugin = plugin_of(ctx)
    with at_desk(ctx) as desk:
        before = find(desk.records, id_or_name)
        after = desk.revoke(before)
    if as_json:
        _print(shown(after, plugin))
    else:
        done = "was revoked already" if before.revoked is not None else "is revoked"
        click.echo(f"The key {after.name!r} (id {after.id}) {done}.", err=True)


@keys.command()
@click.argument("id_or_name")
@click.pass_context
def delete(ctx: click.Context, id_or_name: str) -> None:
    """Forget a key that is revoked or expired."""
    from .desk import find

    with at_desk(ctx) as desk:
        record = find(desk.records, id_or_name)
        desk.delete(record)
    click.echo(f"The key {record.name!r} (id {record.id}) is deleted.", err=True)


@keys.command()
@click.option(
    "--older-than", default="30d", callback=seconds, show_default=True, help="How long ago they must have ended."
)
@AS_JSON
@click.pass_context
def prune(ctx: click.Context, older_than: float, as_json: bool) -> None:
    """Forget keys that were revoked or have expired a while ago."""
    _, plugin = plugin_of(ctx)
    with at_desk(ctx) as desk:
        gone = desk.prune(older_than)
    if as_json:
        _print([shown(record, plugin) for record in gone])
    else:
        click.echo(f"{len(gone)} key{'s' * (len(gone) != 1)} deleted.", err=True)


def plugin_of(ctx: click.Context) -> tuple[Gateway, Plugin]:
    """The gateway and the plugin of this command. Raises click.ClickException if the plugin is not enabled."""
    from headrace.cli import gateway_of

    gateway = gateway_of(ctx)
    plugin = gateway.plugins.get("keys")
    if plugin is None:
        raise click.ClickException("The plugin 'keys' is not enabled: add [plugins.keys] to the configuration.")
    return gateway, plugin


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of ours without a traceback."""
    try:
        yield
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def at_desk(ctx: click.Context) -> Iterator[Desk]:
    """Change keys: what happens within happens whole, and is in the audit log."""
    from headrace.audit import about

    from . import audit, desk

    gateway, plugin = plugin_of(ctx)
    with _noted(ctx), plain_errors():
        gateway.make_dirs()
        with audit.to_file(gateway.state_dir), desk.at_desk(plugin.database, audit.operator()) as opened:
            yield opened
            about(ctx, "; ".join(opened.notes))


def _noted(ctx: click.Context) -> contextlib.AbstractContextManager[None]:
    """Has the gateway's auditors told of it: which key was meant, until it is known what was done."""
    from headrace.audit import noted

    from .keyformat import holds_key

    if ctx.params.get("dry_run"):
        return contextlib.nullcontext()
    named = str(ctx.params.get("id_or_name") or ctx.params.get("name") or ctx.params.get("file") or "")
    return noted(ctx, "a whole key" if holds_key(named) else named)


def shown(record: Record, plugin: Plugin) -> dict[str, Any]:
    """A key as JSON shows it."""
    from .record import described

    return described(record, time.time(), development=plugin.config.development_key)


def _known(changes: Changes, gateway: Gateway) -> Changes:
    from .changes import known

    changes, warnings = known(changes, gateway)
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)
    return changes


def _print(value: Any) -> None:
    from .display import json_text

    click.echo(json_text(value))


__all__ = ["keys"]
