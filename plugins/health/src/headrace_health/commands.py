"""`headrace health`: how the backends are now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin
    from .report import Report


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def health(context: click.Context, as_json: bool) -> None:
    """Check every backend once. Exit status 1 if a model has none that is up. Needs no running gateway."""
    from headrace.cli import Refused, gateway_of
    from headrace.tables import show

    gateway = gateway_of(context)
    try:
        found, rows = asyncio.run(_checked(gateway, gateway.plugins["health"]))
    except HeadraceError as error:
        raise Refused(error) from error
    show(rows if as_json else [_for_people(row) for row in rows], as_json, title="Backends")
    helpless = [name for name, model in found.models.items() if model.status == "down"]
    if helpless:
        click.echo(f"no backend is up for: {', '.join(helpless)}", err=True)
    context.exit(1 if helpless else 0)


async def _checked(gateway: Gateway, plugin: Plugin) -> tuple[Report, list[dict[str, Any]]]:
    from .report import rows

    async with gateway.running(looking=True):
        with _silence():
            async with plugin.watching():
                await plugin.checked()
        found = plugin.report()
        return found, rows(found, plugin.watches)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Changes are not logged: the table says it all."""
    logger = logging.getLogger("headrace.health")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    return {name: "" if value is None else value for name, value in row.items()}
