"""`headrace budget`: what has been used, and what requests cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
COUNT = click.IntRange(0, 10**12)


@click.group()
def budget() -> None:
    """See what of the budgets is used, and what requests cost."""


@budget.command("list")
@click.option("--period", type=click.Choice(["day", "month"]), help="Only budgets of days, or of months.")
@click.option("--past", is_flag=True, help="Periods that are over as well: a week of days, the last month.")
@AS_JSON
@click.pass_context
def list_used(ctx: click.Context, period: str | None, past: bool, as_json: bool) -> None:
    """List what has been used of each budget, whoever used it. What is reserved now counts as used."""
    from headrace.tables import show

    from .report import rows

    gateway, plugin = plugin_of(ctx)
    with _plain_errors():
        gateway.make_dirs()
        counted = asyncio.run(_scanned(gateway))
    found = [each for each in rows(plugin, counted, past) if period in (None, each["period"])]
    if as_json or found:
        show(found if as_json else _for_people(found), as_json, title="Budgets")
    else:
        click.echo("Nothing has been used of any budget.", err=True)


@budget.command()
@click.argument("model")
@click.option("--input", "prompt", type=COUNT, required=True, help="Tokens of the prompt, cached ones included.")
@click.option("--output", "answer", type=COUNT, required=True, help="Tokens of the answer.")
@click.option("--cached", type=COUNT, default=0, show_default=True, help="How many of the prompt's were cached.")
@AS_JSON
@click.pass_context
def cost(ctx: click.Context, model: str, prompt: int, answer: int, cached: int, as_json: bool) -> None:
    """Say what one request for MODEL costs, at each of its targets."""
    from headrace.tables import show

    gateway, plugin = plugin_of(ctx)
    with _plain_errors():
        found = gateway.models.find(model)
    priced = plugin.prices.of(found)
    if priced is None:
        raise click.ClickException(f"The model {found.name!r} has no price.")
    if cached > prompt:
        raise click.BadParameter("there are no more than --input", ctx, param_hint="--cached")
    costs = {name: rate.cost(prompt, cached, answer) for name, rate in priced.by_target.items()}
    show(_costs(costs, plugin.config.currency, as_json), as_json, title=found.name)


def _costs(costs: Mapping[str, int], currency: str, as_json: bool) -> list[dict[str, Any]]:
    from .money import MILLION, written

    if as_json:
        return [{"target": name, "cost": each / MILLION, "unit": currency} for name, each in costs.items()]
    return [{"target": name, "cost": f"{written(each)} {currency}"} for name, each in costs.items()]


def plugin_of(ctx: click.Context) -> tuple[Gateway, Plugin]:
    """The gateway and the plugin of this command. Raises click.ClickException if the plugin is not enabled."""
    from headrace.cli import gateway_of

    gateway = gateway_of(ctx)
    plugin = gateway.plugins.get("budget")
    if plugin is None:
        raise click.ClickException("The plugin 'budget' is not enabled: add [plugins.budget] to the configuration.")
    return gateway, plugin


async def _scanned(gateway: Gateway) -> Sequence[tuple[str, int]]:
    from .rules import PREFIX

    scan = getattr(gateway.ledger, "scan", None)
    if scan is None:
        raise click.ClickException("The ledger of this gateway cannot list what has been used.")
    async with gateway.ledger.reading():
        found: Sequence[tuple[str, int]] = await scan("sum", PREFIX)
        return found


def _for_people(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Amounts with their units, and nothing that a glance does not need."""
    return [
        {
            "rule": each["rule"],
            "of": " ".join(each["of"].values()) or "everybody",
            "when": each["when"],
            **{name: _amount(each[name], each["unit"]) for name in ("used", "limit", "remaining")},
        }
        for each in found
    ]


def _amount(amount: float | None, unit: str) -> str:
    if amount is None:
        return "?"
    if unit == "tokens":
        return f"{amount} tokens"
    whole, _, rest = f"{amount:.6f}".partition(".")
    return f"{whole}.{rest.rstrip('0'):0<2} {unit}"


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of ours without a traceback."""
    try:
        yield
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error


__all__ = ["budget"]
