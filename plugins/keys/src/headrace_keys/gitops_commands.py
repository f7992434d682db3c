"""`headrace keys export` and `headrace keys import`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import ConfigError

from .commands import AS_JSON, at_desk, keys, plain_errors, plugin_of

if TYPE_CHECKING:
    from .plan import Step

FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@keys.command("export")
@click.argument("file", required=False, type=FILE)
@click.pass_context
def export_keys(ctx: click.Context, file: Path | None) -> None:
    """Write the keys as TOML: hashes, never secrets. To FILE (for its owner only), or to standard output."""
    from .files import write_private
    from .gitops import written
    from .store import Store

    gateway, plugin = plugin_of(ctx)
    with plain_errors():
        gateway.make_dirs()
        with Store.open(plugin.database) as store:
            text = written(store.records(), time.time())
        if file is None or str(file) == "-":
            click.echo(text, nl=False)
        else:
            write_private(file, text, "the export")


@keys.command("import")
@click.argument("file", type=FILE)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--prune", is_flag=True, help="Revoke the keys that the file does not have.")
@AS_JSON
@click.pass_context
def import_keys(ctx: click.Context, file: Path, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Make the keys what a TOML file says they are: all of it, or nothing if anything is wrong.

    Keys without a digest are made, and printed this once. FILE may be '-', standard input.
    """
    from .gitops import read, resolved
    from .plan import apply, planned

    gateway, _ = plugin_of(ctx)
    source = "standard input" if str(file) == "-" else str(file)
    try:
        tables, warnings = resolved(read(_text(file), source), gateway)
        with at_desk(ctx) as desk:
            steps = planned(tables, desk, prune=prune, source=source)
            if not dry_run:
                apply(steps, desk)
    except ConfigError as error:
        raise _refusal(error) from error
    for warning in warnings:
        click.echo(f"Warning: {warning}.", err=True)
    _show(steps, dry_run=dry_run, as_json=as_json)


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid UTF-8"
        raise click.ClickException(f"{file} cannot be read: {reason}") from error


def _refusal(error: ConfigError) -> click.ClickException:
    count = len(error.problems)
    lines = "".join(f"\n  {problem}" for problem in error.problems)
    return click.ClickException(f"{count} problem{'s' * (count != 1)}, so nothing is changed:{lines}")


def _show(steps: Sequence[Step], *, dry_run: bool, as_json: bool) -> None:
    from .display import json_text

    if as_json:
        click.echo(json_text([_described(step, dry_run) for step in steps]))
        return
    for step in steps:
        if step.action != "unchanged":
            changed = f": {', '.join(step.changed)}" if step.action == "change" else ""
            click.echo(f"{step.action:<9} {step.record.name} ({step.record.id}){changed}")
        if step.warning:
            click.echo(f"Warning: the key {step.record.name!r} ({step.record.id}) {step.warning}.", err=True)
        if step.key is not None and not dry_run:
            click.echo(f"key       {step.key.reveal()}")
    counts = {action: sum(step.action == action for step in steps) for action in ("create", "change", "revoke")}
    would = " (nothing was done: --dry-run)" if dry_run else ""
    summary = ", ".join(f"{count} to {action}" for action, count in counts.items())
    click.echo(f"{summary}, {len(steps) - sum(counts.values())} unchanged{would}.", err=True)


def _described(step: Step, dry_run: bool) -> dict[str, Any]:
    shown = {
        "action": step.action,
        "id": step.record.id,
        "name": step.record.name,
        "changed": list(step.changed),
        "warning": step.warning or None,
    }
    return {**shown, "key": step.key.reveal()} if step.key is not None and not dry_run else shown
