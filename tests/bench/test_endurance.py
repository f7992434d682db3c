"""The endurance checks work and can fail, with numbers too small to say anything about endurance."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import cpu, ledger_servers
from .endurance_checks import Finding, Limits, Running, core_cpu
from .ledger_books import Books, compared
from .ledger_load import Ask, Seen, mix
from .measure import sample
from .targets import Endpoint, Failed, upstream
from .upstream import Completion

ENTRY = Path(__file__).resolve().parent / "endure.py"
SMALL = {
    "streams": ("--streams", "40", "--chunks", "5", "--lasting", "1"),
    "long": ("--long-streams", "4", "--long-chunks", "50"),
    "memory": ("--requests", "500"),
    "cpu": ("--cpu-streams", "8", "--rounds", "1"),
    "reload": ("--reloads", "10"),
    "ledger": ("--ledger-requests", "250"),
}
FIGURES = {
    "streams": {"streams of 5 chunks answered whole": 40, "of them open at the same time": 40},
    "long": {"streams of 50 chunks answered whole": 4, "of them open at the same time": 4},
    "memory": {"requests answered whole": 500},
    "cpu": {"streams answered whole": 16},
    "reload": {"reloads taken over": 10},
    "ledger": {"rows of requests in the ledger": 250},
}


class Done(NamedTuple):
    """How it ended, and the printed figures without their units."""

    status: int
    figures: dict[str, float]
    printed: str
    progress: str


def endure(check: str, *limits: str) -> Done:
    """Run one small check of the inline delivery."""
    command = [sys.executable, str(ENTRY), "--target", "headrace-inline", "--check", check, *SMALL[check], *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            printed, progress = child.communicate(timeout=120)
        finally:
            child.terminate()  # never killed: it ends what it started
    lines = (re.split(r"  +", line) for line in printed.splitlines()[1:] if line)
    figures = {what: float(figure.split()[0].replace(",", "")) for what, figure, *_ in lines}
    return Done(child.returncode, figures, printed, progress)


def need_postgres() -> None:
    pytest.importorskip("pg8000")
    try:
        ledger_servers.programs()
    except Failed as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("check", SMALL)
def test_a_check_that_keeps_its_limits_ends_with_status_0(check: str, kit: Any) -> None:
    kit.need("nginx")
    if check == "ledger":
        need_postgres()
    done = endure(check)
    assert (done.status, done.figures | FIGURES[check]) == (0, done.figures), done.printed + done.progress


@pytest.mark.parametrize(
    ("check", "limit"),
    [("streams", ("--nginx-kib", "0.01")), ("memory", ("--growth-mib", "-50")), ("cpu", ("--cpu-percent", "20"))],
)
def test_a_broken_limit_is_marked_and_ends_with_status_1(check: str, limit: tuple[str, str], kit: Any) -> None:
    """Inline, a chunk costs the core, so a stream of 1,000 is far from one of 10."""
    kit.need("nginx")
    done = endure(check, *limit)
    assert (done.status, "BROKEN" in done.printed) == (1, True), done.printed + done.progress


@pytest.mark.parametrize(
    ("least", "most", "kept"),
    [(None, None, True), (None, 2.0, True), (None, 1.0, False), (2.0, 2.0, True), (2.5, 3.0, False)],
)
def test_a_finding_is_kept_while_it_is_within_its_range(least: float | None, most: float | None, kept: bool) -> None:
    assert Finding("figure", 2.0, "", least, most).kept is kept


ROW = {
    "request_id": "ledger-000000",
    "group": "1",
    "try": None,
    "model": "bench-model",
    "target": "engine",
    "status": 200,
    "ended": "completed",
    "error": None,
    "estimated": False,
    "input": 12,
    "cached": 0,
    "output": 5,
    "cost": 22e-6,
}
"""As it is to be, for one whole answer of five tokens."""


def broken(*rows: dict[str, Any]) -> set[str]:
    """What is found to be wrong with a ledger of one request."""
    ask = Ask("ledger-000000", "whole", "Which way?", 5, stream=False, usage=False)
    seen, made = Seen(ask, 200, whole=True), Completion(ask.id, False, True, 0, 12, 5)
    requests = [row for row in rows if row["try"] is None]
    names = ("input", "output", "cost", "estimated")
    total = {name: round(sum(row[name] for row in requests), 9) for name in names}
    total |= {"requests": len(requests), "aborted": 0, "failed_tries": len(rows) - len(requests)}
    counted = {"completions": 1, "prompt_tokens": 12, "completion_tokens": 5, "refused": 0}
    return {finding.what for finding in compared(Books([seen], [made], counted, rows, total)) if not finding.kept}


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([ROW], set()),
        ([], {"requests with none", "rows of requests in the ledger"}),
        ([ROW, ROW], {"requests with more than one", "rows of requests in the ledger"}),
        ([ROW | {"output": 6}], {"of them tokens out", "of them with other tokens, or an estimate"}),
        ([ROW | {"estimated": True}], {"of them with other tokens, or an estimate"}),
        ([ROW | {"cost": 23e-6}], {"of them cost, in millionths"}),
        ([ROW | {"ended": "aborted"}], {"rows that end otherwise than clients saw"}),
        ([ROW | {"target": ""}], {"rows of cached answers", "of them without a hit", "of them not free"}),
        ([ROW, ROW | {"try": 1}], {"failed tries that are not free"}),
    ],
)
def test_a_ledger_that_is_not_as_it_was_is_seen(rows: list[dict[str, Any]], wrong: set[str]) -> None:
    found = broken(*rows)
    assert wrong <= found and bool(wrong) is bool(found)


def test_the_mix_of_requests_is_the_same_for_the_same_seed() -> None:
    assert mix(300, 1) == mix(300, 1) != mix(300, 2)


def test_a_target_without_core_and_nginx_is_refused() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        running = Running(Endpoint(1, child.pid), 1, Limits(None, None, None, None), Path())
        with pytest.raises(Failed, match="found no core or no nginx"):
            core_cpu(running, 1, 1)
        child.communicate(b"\n")


@pytest.mark.parametrize("chunks", [2, 100])
def test_streams_last_as_long_as_asked_however_many_chunks_they_have(chunks: int) -> None:
    with upstream(lasting_ms=300) as port:
        report = sample(Endpoint(port, None), ("--mode", "stream", "--requests", "1", "--chunks", str(chunks))).report
    assert (report.completed, report.different, report.p50_ms >= 299) == (1, 0, True)


@pytest.mark.parametrize("look", [cpu.seconds_of, cpu.resident_of])
def test_looking_at_a_process_that_has_ended_is_an_error(look: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    with pytest.raises(ProcessLookupError, match=f"process {child.pid} has ended"):
        look([child.pid])


def test_cpu_time_of_single_processes_leaves_out_their_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, together = cpu.seconds_of([child.pid]), cpu.seconds(child.pid)
        child.communicate(b"\n")
    assert together - alone >= 0.25
