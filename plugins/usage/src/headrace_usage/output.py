"""Rows as tables for people, CSV for spreadsheets, and JSON for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from headrace.tables import table

from .money import MILLION
from .money import written as money

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
SHORT = {
    "endpoint": "endpoint",
    "failed_tries": "tries failed",
    "latency_p50": "p50",
    "latency_p95": "p95",
    "ttft_p50": "ttft p50",
    "ttft_p95": "ttft p95",
}
HIDDEN = ("aborted", "cut", "streams", "estimated", "unpriced")
"""Figures that a table has no room for."""
LISTED = (
    *("time", "key", "model", "target", "endpoint", "status", "ended", "error", "input", "cached", "output", "cost"),
    *("latency", "ttft", "delivery", "group"),
)


def json_text(value: Any) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The names of the columns, then the rows; texts that a spreadsheet would take for formulas begin with a quote."""
    text = io.StringIO()
    if rows:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([[_cell(name, value) for name, value in row.items()] for row in rows])
    return text.getvalue()


def _cell(name: str, value: Any) -> Any:
    if name == "cost" and value is not None:
        return money(round(value * MILLION))
    if isinstance(value, bool):
        return int(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def report_lines(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], currency: str) -> Iterator[str]:
    """A table with a line for everything at its end."""
    by = [name for name in rows[0] if name not in total]
    last = {name: "total" if number == 0 else "" for number, name in enumerate(by)} | dict(total)
    return table([_for_people(row, by, currency) for row in (*rows, last)])


def _for_people(row: Mapping[str, Any], by: Sequence[str], currency: str) -> dict[str, str]:
    shown = {SHORT.get(name, name): _text(name, row[name], currency) for name in row if name not in HIDDEN}
    if "key" in by:  # a name says more than an id; who has none is shown by it
        del shown["name"]
        shown["key"] = _text("key", row["name"] or row["key"] or "(nobody)", currency)
        shown = {name: shown[name] for name in sorted(shown, key=lambda each: list(row).index(_long(each)))}
    return shown


def _long(short: str) -> str:
    return next((name for name, each in SHORT.items() if each == short), short)


def list_lines(rows: Sequence[Mapping[str, Any]], currency: str) -> Iterator[str]:
    """A table of single requests."""
    shown = []
    for row in rows:
        known = {**row, "key": row["name"] or row["key"] or "(nobody)"}
        line = {name: _text(name, known[name], currency) for name in LISTED}
        line["ended"] = f"try {row['try']} failed" if row["try"] else line["ended"]
        shown.append(line)
    return table(shown)


def _text(name: str, value: Any, currency: str) -> str:
    """One cell of a table, without anything that a terminal would obey."""
    if value is None or value == "":
        return "-"
    if name == "cost":
        return f"{money(round(value * MILLION))} {currency}"
    if name.startswith(("latency", "ttft")):
        return f"{value:.3f}s"
    return "".join(each if each.isprintable() else "\ufffd" for each in str(value))
