"""Medians over the rounds, as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .load import Report
from .measure import Sample, Turn

Turns = Mapping[str, Sequence[Turn]]
BASE = "upstream"
"""Whose latency is subtracted."""
RATIO_TO = "nginx"
"""Whose CPU time the others' is divided by."""


def summary(turns: Turns) -> dict[str, dict[str, Any]]:
    """Each target's figures; CPU in microseconds, latencies in milliseconds, memory in MiB. A round in which one had no
    answer at all counts for its errors alone: it has fallen over.

    Keys without a number of connections are those of the fewest for latencies, of the most for CPU and throughput.
    """
    return {name: _target(own, turns.get(BASE)) for name, own in turns.items()}


def _target(every: Sequence[Turn], bases: Sequence[Turn] | None) -> dict[str, Any]:
    kept = [number for number, turn in enumerate(every) if _answered(turn)] or range(len(every))
    own, base = [every[number] for number in kept], [bases[number] for number in kept] if bases is not None else None
    connections = sorted(own[0].unary)
    fewest, most = connections[0], connections[-1]
    figures: dict[str, Any] = {
        "unary_cpu_us": _median(turn.unary[most].cpu_us for turn in own),
        "stream_cpu_us": _median(turn.stream.cpu_us for turn in own),
        **_latency(own, base, fewest, ""),
        "rps": _median(turn.unary[most].report.rps for turn in own),
        "rss_mb": _median(turn.rss_mb for turn in own),
        "equal": not any(sample.report.different for turn in every for sample in turn.samples()),
        "errors": sum(_errors(sample.report) for turn in every for sample in turn.samples()),
    }
    for many in connections:
        figures[f"unary_cpu_us_{many}"] = _median(turn.unary[many].cpu_us for turn in own)
        figures |= _latency(own, base, many, f"_{many}")
    figures["unary_cpu_us_rounds"] = [_rounded(turn.unary[most].cpu_us) for turn in own]
    figures["stream_cpu_us_rounds"] = [_rounded(turn.stream.cpu_us) for turn in own]
    figures["stream_p50_ms"] = _median(turn.stream.report.p50_ms for turn in own)
    figures["stream_first_byte_p50_ms"] = _median(turn.stream.report.first_byte_p50_ms for turn in own)
    figures["stream_added_first_byte_p50_ms"] = _added(
        own, base, lambda turn: turn.stream, lambda report: report.first_byte_p50_ms
    )
    return figures


def _answered(turn: Turn) -> bool:
    return all(sample.report.completed for sample in turn.samples())


def _latency(own: Sequence[Turn], base: Sequence[Turn] | None, many: int, suffix: str) -> dict[str, Any]:
    """Of whole answers over so many connections."""

    def pick(turn: Turn) -> Sample:
        return turn.unary[many]

    return {
        f"added_p50_ms{suffix}": _added(own, base, pick, lambda report: report.p50_ms),
        f"added_p99_ms{suffix}": _added(own, base, pick, lambda report: report.p99_ms),
        f"p50_ms{suffix}": _median(pick(turn).report.p50_ms for turn in own),
        f"p99_ms{suffix}": _median(pick(turn).report.p99_ms for turn in own),
    }


def _added(
    own: Sequence[Turn],
    base: Sequence[Turn] | None,
    pick: Callable[[Turn], Sample],
    figure: Callable[[Report], float],
) -> float | None:
    """The median of what a target adds to the upstream's own latency, each round compared with itself."""
    if base is None:
        return None
    pairs = zip(own, base, strict=True)
    return _median(figure(pick(mine).report) - figure(pick(theirs).report) for mine, theirs in pairs)


def _errors(report: Report) -> int:
    return sum(report.errors.values())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(statistics.median(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def first_error(turns: Sequence[Turn]) -> str:
    """What went wrong first, in a few words."""
    for sample in (sample for turn in turns for sample in turn.samples()):
        if sample.report.errors:
            return f"{', '.join(sample.report.errors)}: {sample.report.first_error}"
    return ""


def table(figures: Mapping[str, Mapping[str, Any]], chunks: int) -> str:
    """For people: one line per target, with its ratio to nginx alone."""
    rows = cells(figures, chunks)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def cells(figures: Mapping[str, Mapping[str, Any]], chunks: int) -> list[list[str]]:
    """The table's heads and its rows: name, four of cost, those of time, four more."""
    connections = sorted(int(key.rpartition("_")[2]) for key in next(iter(figures.values())) if _counted(key))
    heads = ["", "CPU/request", "to nginx", f"CPU/{chunks}-chunk stream", "to nginx"]
    for many in connections:
        heads += [f"added p50 @{many}", f"added p99 @{many}"]
    heads += [f"{chunks}-chunk stream took"]
    heads += [f"requests/s @{connections[-1]}", "memory", "bytes equal", "errors"]
    return [heads, *(_row(name, own, figures.get(RATIO_TO), connections) for name, own in figures.items())]


def _counted(key: str) -> bool:
    return key.startswith("added_p50_ms_") and key.rpartition("_")[2].isdigit()


def _row(name: str, own: Mapping[str, Any], base: Mapping[str, Any] | None, connections: Sequence[int]) -> list[str]:
    row = [name]
    for key in ("unary_cpu_us", "stream_cpu_us"):
        row += [_cell(own[key], "{:,.0f} µs"), _cell(_ratio(own[key], base[key] if base else None), "{:.1f} x")]
    for many in connections:
        row += [_cell(own[f"added_p{percent}_ms_{many}"], "{:.2f} ms") for percent in (50, 99)]
    row += [_cell(own["stream_p50_ms"], "{:,.0f} ms")]
    row += [_cell(own["rps"], "{:,.0f}"), _cell(own["rss_mb"], "{:,.0f} MiB")]
    return [*row, "yes" if own["equal"] else "no", str(own["errors"])]


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = row
    aligned = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *aligned]).rstrip()
