"""The benchmark works and its instruments tell the truth. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import FakeBackend

from . import cpu, decisions
from .load import Report, percentile
from .measure import Sample, Turn
from .report import summary

BENCH = Path(__file__).resolve().parent
FIGURES = ("unary_cpu_us", "stream_cpu_us", "added_p50_ms", "p99_ms", "rps", "rss_mb")
BURN = "import time\nwhile time.process_time() < 0.3: pass"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, kit: Any) -> Any:
    """What a quick run of the whole benchmark writes."""
    kit.need("nginx")
    path = tmp_path_factory.mktemp("bench") / "results.json"
    command = [sys.executable, str(BENCH / "run.py"), "--quick", "--targets", "nginx,headrace-inline"]
    with subprocess.Popen([*command, "--json", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            table, progress = child.communicate(timeout=240)
        finally:
            child.terminate()  # never killed: it ends what it started
    assert child.returncode == 0, progress.decode()
    return {**json.loads(path.read_text()), "table": table.decode()}


@pytest.mark.alone
async def test_decisions_are_measured_with_and_without_each_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "REQUESTS", 640)
    figures = {figure.name: figure.cpu_us for figure in await decisions.measure()}
    assert list(figures) == ["none", "keys", "keys+ratelimit", "keys+ratelimit+budget", "the same, six limits"]
    assert 0 < figures["none"] < figures["keys+ratelimit"] < figures["the same, six limits"]


@pytest.mark.parametrize("target", ["nginx", "headrace-inline"])
def test_every_figure_of_a_target_is_measured(results: Any, target: str) -> None:
    figures = results["targets"][target]
    assert {name: type(figures[name]) for name in FIGURES} == dict.fromkeys(FIGURES, float)
    assert min(figures[name] for name in ("unary_cpu_us", "stream_cpu_us", "rps", "rss_mb")) > 0


@pytest.mark.parametrize("target", ["upstream", "nginx", "headrace-inline"])
def test_every_answer_arrives_whole_and_byte_for_byte(results: Any, target: str) -> None:
    assert {name: results["targets"][target][name] for name in ("errors", "equal")} == {"errors": 0, "equal": True}


def test_the_table_has_a_line_for_each_target(results: Any) -> None:
    assert [line.split()[0] for line in results["table"].splitlines()[1:]] == list(results["targets"])


async def load(backend: FakeBackend, *arguments: str) -> Any:
    """What the load generator reports of this backend."""
    port = backend.url.removesuffix("/v1").rpartition(":")[2]
    command = [sys.executable, "-m", "bench.load", "--port", port, "--requests", "4", "--concurrency", "2", *arguments]
    child = await asyncio.create_subprocess_exec(*command, cwd=BENCH.parent, stdout=subprocess.PIPE)
    printed, _ = await child.communicate()
    return json.loads(printed)


@pytest.mark.parametrize("mode", ["unary", "stream"])
async def test_answers_that_are_not_the_upstreams_bytes_are_counted(mode: str) -> None:
    async with FakeBackend() as backend:
        report = await load(backend, "--mode", mode)
    assert (report["completed"], report["different"], report["errors"]) == (4, 4, {})


async def test_streams_that_end_early_are_errors() -> None:
    async with FakeBackend() as backend:
        backend.cut_after = 1
        report = await load(backend, "--mode", "stream")
    assert (report["completed"], report["errors"]) == (0, {"Cut": 4})


async def test_refusals_are_errors() -> None:
    async with FakeBackend() as backend:
        backend.status = 503
        report = await load(backend)
    assert (report["completed"], report["errors"]) == (0, {"status 503": 4})


async def test_connections_begin_one_after_the_other_where_that_is_wanted() -> None:
    endless = ("--requests", "1000000", "--concurrency", "4", "--seconds", "0.1")
    async with FakeBackend() as backend:
        assert (await load(backend, *endless))["connections"] == 4
        assert (await load(backend, *endless, "--spread", "0.8"))["connections"] == 1  # it is over before the second


def test_cpu_time_counts_children_that_have_ended() -> None:
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\nprint('done', flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = cpu.seconds(child.pid)
        child.communicate(b"\n")
    assert used >= 0.25


def test_cpu_time_counts_children_that_live() -> None:
    grandchild = f"{BURN}\nprint('done', flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = cpu.seconds(child.pid)
        child.communicate(b"\n")
    assert used >= 0.25


def turn(answered: int, milliseconds: float, cpu_us: float | None) -> Turn:
    """A round of a target; where nothing is answered all requests are errors."""
    errors = {} if answered else {"ConnectionRefusedError": 4}
    report = Report(
        completed=answered,
        errors=errors,
        different=0,
        seconds=1.0,
        rps=float(answered),
        p50_ms=milliseconds,
        p99_ms=milliseconds,
        first_byte_p50_ms=milliseconds,
        first_byte_p99_ms=milliseconds,
        connections=1,
    )
    sample = Sample(report=report, cpu_us=cpu_us)
    return Turn(unary={1: sample}, stream=sample, rss_mb=50.0)


def test_a_round_in_which_a_target_has_fallen_over_counts_for_its_errors_alone() -> None:
    turns = {
        "upstream": [turn(4, 1.0, None)] * 3,
        "fragile": [turn(4, 5.0, 7.0), turn(0, 0.0, None), turn(0, 0.0, None)],
    }
    figures = summary(turns)["fragile"]
    names = ("unary_cpu_us", "stream_cpu_us", "added_p50_ms", "errors")
    assert [figures[name] for name in names] == [7.0, 7.0, 4.0, 16]
    assert figures["unary_cpu_us_rounds"] == [7.0]


def test_a_target_that_never_answered_has_no_cost() -> None:
    figures = summary({"dead": [turn(0, 0.0, None)]})["dead"]
    assert (figures["unary_cpu_us"], figures["stream_cpu_us"], figures["errors"]) == (None, None, 8)


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (99, 4.0), (100, 4.0)])
def test_percentiles_are_values_that_were_measured(percent: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == value
