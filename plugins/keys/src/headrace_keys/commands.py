"""`headrace keys`: create, list and revoke keys. A running gateway follows within `refresh_seconds`."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.exchange import Role
    from headrace.gateway import Gateway

    from . import Plugin
    from .record import Record
    from .store import Store

NAME_LIMIT = 100
"""Characters of a key's name: it stands in log lines and tables."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_SECONDS = 100 * 365 * 86_400
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`30d`, `12h`, …: a number and a unit, as seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,10})([smhdw])", value.strip(), re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration: write a number and s, m, h, d or w, for instance 30d")
    seconds = int(match[1]) * UNITS[match[2]]
    if not 0 < seconds <= LONGEST_SECONDS:
        raise click.BadParameter(f"{value!r} is not between one second and 100 years")
    return float(seconds)


def _checked_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    name = value.strip()
    if not name or len(name) > NAME_LIMIT or not name.isprintable():
        raise click.BadParameter(f"a name has 1 to {NAME_LIMIT} printable characters")
    return name


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.argument("name", callback=_checked_name)
@click.option("--role", type=click.Choice(["user", "admin", "metrics"]), default="user", show_default=True)
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Allow this model only; may be repeated.")
@click.option("--expires", callback=_seconds, metavar="30d", help="Expire after this time (s, m, h, d, w).")
@AS_JSON
@click.pass_context
def create(
    ctx: click.Context, name: str, role: str, models: tuple[str, ...], expires: float | None, as_json: bool
) -> None:
    """Create a key and print it, this once."""
    gateway, plugin = _plugin(ctx)
    allowed = [_known_model(gateway, model) for model in models] or None
    until = None if expires is None else time.time() + expires
    with _opened(gateway, plugin) as store, store.writing():
        record, key = store.create(name, role=cast("Role", role), models=allowed, expires=until)
    if as_json:
        click.echo(_json({**_described(record, plugin), "key": key.reveal()}))
        return
    click.echo(key.reveal())
    click.echo(f"This is the key {name!r} (id {record.id}). Keep it now: it cannot be shown again.", err=True)
    click.echo(f"It works at gateways that keep their keys in {plugin.database}.", err=True)


@keys.command("list")
@AS_JSON
@click.pass_context
def list_keys(ctx: click.Context, as_json: bool) -> None:
    """List the keys, without their secrets."""
    gateway, plugin = _plugin(ctx)
    with _opened(gateway, plugin) as store:
        described = [_described(record, plugin) for record in store.records()]
    if as_json:
        click.echo(_json(described))
    elif described:
        _print_table(described)
    else:
        click.echo("There are no keys yet: headrace keys create NAME", err=True)


@keys.command()
@click.argument("id_or_name")
@AS_JSON
@click.pass_context
def revoke(ctx: click.Context, id_or_name: str, as_json: bool) -> None:
    """Revoke a key, by its id or its name."""
    gateway, plugin = _plugin(ctx)
    with _opened(gateway, plugin) as store, store.writing():
        before = _found(store.records(), id_or_name)
        store.revoke(before.id)
        after = next(record for record in store.records() if record.id == before.id)
    if as_json:
        click.echo(_json(_described(after, plugin)))
    else:
        done = "was revoked already" if before.revoked is not None else "is revoked"
        click.echo(f"The key {after.name!r} (id {after.id}) {done}.", err=True)


def _plugin(ctx: click.Context) -> tuple[Gateway, Plugin]:
    from headrace.cli import gateway_of

    gateway = gateway_of(ctx)
    plugin = gateway.plugins.get("keys")
    if plugin is None:
        raise click.ClickException("The plugin 'keys' is not enabled: add [plugins.keys] to the configuration.")
    return gateway, plugin


@contextlib.contextmanager
def _opened(gateway: Gateway, plugin: Plugin) -> Iterator[Store]:
    from .store import Store

    try:
        gateway.make_dirs()
        with Store.open(plugin.database) as store:
            yield store
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error


def _known_model(gateway: Gateway, name: str) -> str:
    """The model's own name, should this be an alias of it: core compares own names."""
    if name not in gateway.models.names():
        known = ", ".join(gateway.models.names()) or "none"
        click.echo(f"Warning: there is no model {name!r} in the configuration (there are: {known}).", err=True)
        return name
    return gateway.models.find(name).name


def _found(records: Sequence[Record], id_or_name: str) -> Record:
    """The one key meant: an id first, then a name; of a name's keys those still in force."""
    for record in records:
        if record.id == id_or_name:
            return record
    named = [record for record in records if record.name == id_or_name]
    candidates = [record for record in named if record.revoked is None] or named[-1:]
    if not candidates:
        raise click.ClickException(f"There is no key with the id or name {id_or_name!r}: see headrace keys list.")
    if len(candidates) > 1:
        ids = ", ".join(record.id for record in candidates)
        raise click.ClickException(f"{len(candidates)} keys are named {id_or_name!r}: give one's id ({ids}).")
    return candidates[0]


def _described(record: Record, plugin: Plugin) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "models": None if record.models is None else list(record.models),
        "created": _moment(record.created),
        "expires": _moment(record.expires),
        "state": record.state(time.time(), development=plugin.config.development_key),
    }


def _moment(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _print_table(described: Sequence[dict[str, Any]]) -> None:
    from headrace.tables import table

    rows = [
        {
            **row,
            "models": "all" if row["models"] is None else row["models"],
            "created": row["created"][:10],
            "expires": row["expires"][:16].replace("T", " ") if row["expires"] else "never",
        }
        for row in described
    ]
    for line in table(rows):
        click.echo(line)
