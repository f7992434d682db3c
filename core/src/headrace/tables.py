"""Rows for people as columns, for scripts as JSON. For plugins' commands too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import msgspec

Rows = Sequence[Mapping[str, Any]]


def show(rows: Rows, as_json: bool, title: str) -> None:
    """Print rows with the same keys: a table, or a JSON array."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(list(rows)), indent=2).decode())
        return
    click.echo(click.style(title, bold=True))
    for line in table(rows):
        click.echo(line)


def table(rows: Rows) -> Iterator[str]:
    """Lines in columns, the names of the columns first; nothing for no rows."""
    if not rows:
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        yield text if number else click.style(text, dim=True)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
