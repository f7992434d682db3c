"""`headrace usage`: what was used, by whom, and what it cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from . import Plugin
    from .store import Store

FORMAT = click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
PAUSE_SECONDS = 0.01
"""Between two steps of deleting, for those who write."""
WAIT_SECONDS = 5.0

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def selecting(since: str) -> Callable[[AnyCommand], AnyCommand]:
    """The options that say which requests."""

    def add(command: AnyCommand) -> AnyCommand:
        for name in ("role", "status", "endpoint", "target", "owner", "team", "model", "key"):
            more = ", by its id or its name" if name == "key" else ""
            option = click.option(f"--{name}", multiple=True, help=f"Only this {name}{more}; may be repeated.")
            command = option(command)
        command = click.option("--until", metavar="TIME", help="Before then; the same.")(command)
        return click.option(
            *("--since", "since"),
            metavar="TIME",
            default=since,
            show_default=True,
            help="From then on: 7d (so long ago), 2027-01-31 or 2027-01-31T18:00:00Z.",
        )(command)

    return add


@click.group()
def usage() -> None:
    """See what was used, by whom, and what it cost."""


@usage.command()
@click.option(
    *("--by", "by"),
    default="key,model",
    show_default=True,
    help="What to sum up by, with commas: key, model, team, owner, target, endpoint, status, role, day, hour.",
)
@selecting("7d")
@FORMAT
@click.option(
    "--sort", default="", help="By this figure, the largest first, or by one of --by.  [default: time or cost]"
)
@click.option("--limit", type=click.IntRange(min=1), help="No more than so many rows.")
@click.pass_context
def report(
    ctx: click.Context,
    /,
    by: str,
    since: str,
    until: str | None,
    form: str,
    sort: str,
    limit: int | None,
    **filters: Any,
) -> None:
    """Sum up requests: how many, errors, tokens, cost, and how long they took (of those that were answered well)."""
    from .output import csv_text, json_text, report_lines
    from .report import described
    from .report import report as ask
    from .selection import Question

    plugin, currency = plugin_of(ctx)
    names = tuple(each.strip() for each in by.split(","))
    question = _asked(Question, since, until, filters, by=names, sort=sort, limit=limit)
    with at_ledger(plugin) as store:
        found = ask(store, question)
    if form == "json":
        click.echo(json_text(described(found, question, currency)))
    elif form == "csv":
        click.echo(csv_text(found.rows), nl=False)
    elif found.rows:
        for line in report_lines(found.rows, found.total, currency):
            click.echo(line)
    _remarks(found, question)


def _remarks(found: Any, question: Any) -> None:
    """What a reader of the figures has to know, beside them."""
    from .times import to_the_second

    if not found.rows:
        click.echo("There were no such requests.", err=True)
    if found.groups > len(found.rows):
        click.echo(f"{found.groups - len(found.rows)} more rows are not shown (--limit); the total has them.", err=True)
    if found.total["unpriced"]:
        click.echo(f"{found.total['unpriced']} of the requests have no price: they cost nothing here.", err=True)
    if abs(found.since - question.since) >= 1000 and found.rows:
        when = to_the_second(found.since)
        click.echo(f"Single requests of before are deleted: this is from {when} on.", err=True)


@usage.command("list")
@selecting("1h")
@FORMAT
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The latest so many.")
@click.pass_context
def list_requests(ctx: click.Context, /, since: str, until: str | None, form: str, limit: int, **filters: Any) -> None:
    """List single requests and their failed tries, the latest last."""
    from .listing import listed
    from .output import csv_text, json_text, list_lines
    from .selection import Selection

    plugin, currency = plugin_of(ctx)
    selection = _asked(Selection, since, until, filters)
    with at_ledger(plugin) as store:
        rows = listed(store, selection, limit)[::-1]
    if form == "json":
        click.echo(json_text(rows))
    elif form == "csv":
        click.echo(csv_text(rows), nl=False)
    elif rows:
        for line in list_lines(rows, currency):
            click.echo(line)
    if not rows:
        click.echo("There were no such requests.", err=True)


@usage.command()
@click.option("--older-than", required=True, metavar="90d", help="Delete what ended longer ago, in whole days (UTC).")
@click.option("--summaries", is_flag=True, help="The sums of these days as well: then no report knows of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def prune(ctx: click.Context, older_than: str, summaries: bool, as_json: bool) -> None:
    """Delete old requests. Reports by day still know their sums, unless these are deleted as well."""
    from headrace.audit import noted

    from .output import json_text
    from .retention import steps
    from .times import DAY, day_of

    plugin, _ = plugin_of(ctx)
    before = int(time.time() * 1000) - _spanned(older_than)
    deleted = 0
    with noted(ctx, f"before {day_of(before // DAY)}"), at_ledger(plugin) as store:
        for count in steps(store, before, before if summaries else None):
            deleted += count
            time.sleep(PAUSE_SECONDS)
    if as_json:
        click.echo(json_text({"deleted": deleted, "before": day_of(before // DAY)}))
    else:
        click.echo(f"{deleted} rows from before {day_of(before // DAY)} deleted.", err=True)


def _spanned(text: str) -> int:
    from .times import span

    try:
        return span(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--older-than") from None


def _asked(kind: Any, since: str, until: str | None, filters: Any, **more: Any) -> Any:
    from .selection import NOW
    from .times import moment

    now = int(time.time() * 1000)
    wanted = {name: tuple(values) for name, values in filters.items() if values}
    try:
        times = {"since": moment(since, now), "until": moment(until, now) if until else NOW}
        return kind(**times, filters=wanted, **more)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def plugin_of(ctx: click.Context) -> tuple[Plugin, str]:
    """The plugin of this command, and its currency. Raises click.ClickException if it is not enabled."""
    from headrace.cli import gateway_of

    plugin = gateway_of(ctx).plugins.get("usage")
    if plugin is None:
        raise click.ClickException("The plugin 'usage' is not enabled: add [plugins.usage] to the configuration.")
    return plugin, plugin.config.currency


@contextlib.contextmanager
def at_ledger(plugin: Plugin) -> Iterator[Store]:
    """The open ledger. Errors of ours come without a traceback."""
    from .store import Store

    try:
        with Store.open(plugin.database, WAIT_SECONDS, create=False) as store:
            yield store
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error


__all__ = ["usage"]
