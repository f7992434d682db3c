"""What the documentation shows of `results.json`: the chart, and the part of `docs/benchmarks.md` between two marks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .chart import svg
from .report import cells

RESULTS = Path(__file__).resolve().parent / "results.json"
DOCS = Path(__file__).resolve().parents[2] / "docs"
CHART, PAGE = "benchmarks.svg", "benchmarks.md"
BEGIN = "<!-- results: written by tests/bench/run.py --draw -->"
END = "<!-- end of results -->"
COSTS, LAST = 5, 4
"""Of a row of `report.cells`: the name and what a request costs in front, throughput and the like at the end."""


def draw(results: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write what differs from what is there. Returns the files written.

    Raises:
        ValueError: the page has lost its marks.
    """
    changed = [(path, text) for path, text in rendered(results, docs).items() if _current(path) != text]
    for path, text in changed:
        path.write_text(text, "utf-8")
    return [path for path, _ in changed]


def rendered(results: Path = RESULTS, docs: Path = DOCS) -> dict[Path, str]:
    """The files as they have to be."""
    figures = json.loads(results.read_text("utf-8"))
    page = docs / PAGE
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no line {BEGIN!r} followed by {END!r}")
    return {docs / CHART: svg(figures), page: f"{before}{BEGIN}\n\n{section(figures)}\n\n{END}{after}"}


def _current(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def section(results: Mapping[str, Any]) -> str:
    """What the figures depend on, and two tables: what a request costs, and how much later its answer comes."""
    rows = cells(results["targets"], results["settings"]["chunks"])
    costs = [[*row[:COSTS], *row[-LAST:]] for row in rows]
    delays = [[row[0], *row[COSTS:-LAST]] for row in rows]
    return f"{_conditions(results['settings'], results['machine'])}\n\n{_table(costs)}\n\n{_table(delays)}"


def _conditions(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    named = {"Headrace": machine["headrace"], **machine["peers"], "Python": machine["python"]}
    kind = f"{machine['cores']} cores, {machine['architecture']}, {machine['system']}"
    *fewer, most = sorted(settings["concurrency"])
    quarter = f" (a quarter of them over {' and '.join(map(str, fewer))})" if fewer else ""
    return "\n".join(
        (
            f"- Versions: {', '.join(f'{name} {version}' for name, version in named.items())}",
            f"- Machine: {kind}; load before the start {machine['load_before']:.1f}",
            f"- Rounds: {settings['rounds']}. In each {settings['requests']:,} whole answers over {most}"
            f" connections{quarter},",
            f"  then {settings['streams']} streams of {settings['chunks']} chunks over as many,",
            f"  {settings['pace_ms']:g} ms from chunk to chunk; no new request after {settings['seconds']:g} s",
            f"- Requests: prompts of {settings['prompt_bytes']} bytes; clients"
            f" {'ask' if settings['usage'] else 'do not ask'} streams for token usage",
        )
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    heads, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([heads, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *rest])
