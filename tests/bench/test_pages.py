"""The chart and the tables of the documentation say what `results.json` says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from . import pages
from .chart import Scale, duration, svg
from .cli import parsed

SVG = "{http://www.w3.org/2000/svg}"
Results = dict[str, Any]


@pytest.fixture
def results() -> Results:
    """Those of the repository."""
    loaded: Results = json.loads(pages.RESULTS.read_text("utf-8"))
    return loaded


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the pages with results in them."""
    for name in (pages.CHART, pages.PAGE):
        shutil.copy(pages.DOCS / name, tmp_path)
    return tmp_path


def texts(chart: str, kind: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(chart).iter(f"{SVG}text") if each.get("class") == kind]


def widths(chart: str) -> list[float]:
    """Of the bars, from top to bottom."""
    found = ElementTree.fromstring(chart).iter(f"{SVG}rect")
    return [float(each.attrib["width"]) for each in found if each.get("class") in ("own", "other")]


@pytest.mark.parametrize("name", [pages.CHART, pages.PAGE])
def test_what_is_committed_is_what_the_results_give(name: str) -> None:
    path = pages.DOCS / name
    assert path.read_text("utf-8") == pages.rendered()[path], "run python tests/bench/run.py --draw"


def test_every_measured_target_has_two_bars_with_its_figures(results: Results) -> None:
    measured = {name: own for name, own in results["targets"].items() if own["unary_cpu_us"] is not None}
    figures = [duration(own[key]) for key in ("unary_cpu_us", "stream_cpu_us") for own in measured.values()]
    chart = svg(results)
    assert (texts(chart, "name"), texts(chart, "figure")) == ([*measured, *measured], figures)


def test_longer_bars_stand_for_larger_figures(results: Results) -> None:
    values = [own[key] for key in ("unary_cpu_us", "stream_cpu_us") for own in results["targets"].values() if own[key]]
    drawn = widths(svg(results))
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [drawn[each] for each in order] == sorted(drawn)


def test_a_tenfold_figure_is_always_the_same_distance_away() -> None:
    scale = Scale.over([20.0, 30_000.0])
    assert scale.x(100) - scale.x(10) == pytest.approx(scale.x(10_000) - scale.x(1_000), abs=0.2)


def test_the_chart_has_colours_for_dark_pages(results: Results) -> None:
    assert "@media (prefers-color-scheme: dark)" in svg(results)


@pytest.mark.parametrize(
    ("microseconds", "text"), [(30.2, "30 µs"), (999.4, "999 µs"), (1965.1, "2.0 ms"), (103847.4, "104 ms")]
)
def test_durations_are_short_and_have_a_unit(microseconds: float, text: str) -> None:
    assert duration(microseconds) == text


def test_drawing_writes_only_what_differs(results: Results, docs: Path, tmp_path: Path) -> None:
    results["machine"]["load_before"] += 1  # the page tells it, the chart does not
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    assert pages.draw(tmp_path / "results.json", docs) == [docs / pages.PAGE]


def test_drawing_again_changes_nothing(docs: Path) -> None:
    pages.draw(pages.RESULTS, docs)
    assert pages.draw(pages.RESULTS, docs) == []


def test_a_page_that_lost_its_marks_is_refused(docs: Path) -> None:
    (docs / pages.PAGE).write_text("# What a request costs\n", "utf-8")
    with pytest.raises(ValueError, match="has no line"):
        pages.draw(pages.RESULTS, docs)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ([], pages.RESULTS),
        (["--quick"], None),
        (["--targets", "nginx"], None),
        (["--targets", "nginx", "--json", "here.json"], Path("here.json")),
        (["--quick", "--json", "here.json"], Path("here.json")),
    ],
)
def test_only_a_whole_run_replaces_the_results(arguments: list[str], where: Path | None) -> None:
    assert parsed(arguments).json == where
