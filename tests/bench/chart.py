"""The chart of the benchmark: an SVG of horizontal bars on a logarithmic scale, for light and for dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

Bars = Sequence[tuple[str, float]]
"""Targets with their microseconds."""
WIDTH, LEFT, RIGHT = 760, 204, 84
"""Of the picture, of the names, of the room for the figure behind the longest bar; in pixels."""
ROW, BAR, HEAD, GAP, EDGE = 24, 14, 50, 18, 20
OWN = "headrace"
STYLE = """\
.page { fill: #ffffff; stroke: #d0d7de; }
text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.note { font-size: 11px; fill: #59636e; }
.grid { stroke: #d0d7de; }
.own { fill: #0a7ea4; }
.other { fill: #9aa4ae; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #30363d; }
  text { fill: #e6edf3; }
  .note { fill: #9198a1; }
  .grid { stroke: #30363d; }
  .own { fill: #39a9d0; }
  .other { fill: #6e7681; }
}"""


class Scale(NamedTuple):
    """From microseconds to pixels: powers of ten, from the one below the least figure."""

    low: int
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        return cls(math.floor(math.log10(min(values))), math.log10(max(values)))

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / max(self.high - self.low, 1e-9)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT - EDGE), 1)

    def ticks(self) -> list[int]:
        return [10**power for power in range(self.low, math.floor(self.high) + 1)]


def svg(results: Mapping[str, Any]) -> str:
    """The chart of what `results.json` holds."""
    chunks = results["settings"]["chunks"]
    groups = {
        "CPU time per request, answered whole": bars(results, "unary_cpu_us"),
        f"CPU time per stream of {chunks} chunks": bars(results, "stream_cpu_us"),
    }
    scale = Scale.over([value for own in groups.values() for _, value in own])
    shapes: list[str] = []
    top = EDGE
    for title, own in groups.items():
        shapes += _group(title, own, scale, top)
        top += HEAD + ROW * len(own) + GAP
    shapes.append(
        _text(EDGE, top + 8, "All processes of the gateway together. Logarithmic scale; shorter is better.", "note")
    )
    return _document("\n".join(shapes), top + EDGE + 4, f"What a request costs: {_spoken(groups)}")


def bars(results: Mapping[str, Any], figure: str) -> Bars:
    """The targets that have this figure, in the order they were measured in."""
    targets = results["targets"].items()
    return [(name, float(own[figure])) for name, own in targets if own[figure] is not None]


def duration(microseconds: float) -> str:
    """With the unit that suits it, and no more digits than mean something."""
    if microseconds < 1000:
        return f"{microseconds:,.0f} µs"
    return f"{microseconds / 1000:,.{1 if microseconds < 100_000 else 0}f} ms"


def _group(title: str, own: Bars, scale: Scale, top: float) -> Iterator[str]:
    yield _text(EDGE, top + 16, title, "title")
    bottom = top + HEAD + ROW * len(own)
    for tick in scale.ticks():
        x = scale.x(tick)
        yield f'<line class="grid" x1="{x}" y1="{top + HEAD - 6}" x2="{x}" y2="{bottom - 4}"/>'
        yield _text(x, top + HEAD - 10, duration(tick).replace(".0", ""), "note", "middle")
    for number, (name, value) in enumerate(own):
        yield from _bar(name, value, scale, top + HEAD + ROW * number)


def _bar(name: str, value: float, scale: Scale, y: float) -> Iterator[str]:
    end = scale.x(value)
    kind = "own" if name.startswith(OWN) else "other"
    yield _text(LEFT - 10, y + 11, name, "name", "end")
    yield f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" rx="2"/>'
    yield _text(end + 6, y + 11, duration(value), "figure")


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(body: str, height: float, label: str) -> str:
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">
<title>{escape(label)}</title>
<style>
{STYLE}
</style>
<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>
{body}
</svg>
"""


def _spoken(groups: Mapping[str, Bars]) -> str:
    """For readers who do not see it."""
    return ". ".join(
        f"{title}: {', '.join(f'{name} {duration(value)}' for name, value in own)}" for title, own in groups.items()
    )
