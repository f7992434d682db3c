"""A gateway that takes over its configuration again and again while it answers: nothing is lost, nothing grows."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace.reload import read

from .endurance_checks import MIB, WARM_UP, Finding, Running, answered, memory_of, watched
from .measure import sample
from .targets import Failed

UNARY = ("--requests", "400", "--concurrency", "8", "--warm-up", "1")
STREAMS = ("--mode", "stream", "--requests", "40", "--concurrency", "8", "--warm-up", "1")
PATIENCE = 60.0
"""Seconds that one reload may take."""
POLL_SECONDS = 0.002


class Answers:
    """Asks until it is told to stop, and counts what it got."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.asked = self.completed = self.different = 0
        self.stop = threading.Event()

    def keep_asking(self) -> None:
        while not self.stop.is_set():
            for words, count in ((UNARY, 400), (STREAMS, 40)):
                report = sample(self._running.endpoint, words).report
                self.asked += count
                self.completed += report.completed
                self.different += report.different


def reloads(running: Running, count: int) -> list[Finding]:
    """`count` reloads, each with another model in the file, while requests come and go."""
    file = running.folder / "headrace.toml"
    text, answers, most = file.read_text(), Answers(running), running.limits.growth_mib
    with watched(running) as members, ThreadPoolExecutor(1) as pool:
        sample(running.endpoint, WARM_UP)
        asking = pool.submit(answers.keep_asking)
        try:
            _reload(running, members.core, file, text, max(1, count // 10))
            first, began = memory_of(members), time.monotonic()
            _reload(running, members.core, file, text, count - max(1, count // 10))
            seconds = time.monotonic() - began
        finally:
            answers.stop.set()
        asking.result()
        last = memory_of(members)
    return [
        Finding("reloads taken over", count, ""),
        Finding("of them a second", (count - max(1, count // 10)) / seconds, ""),
        *answered("requests answered whole meanwhile", answers.completed, answers.asked, answers.different),
        Finding("core, memory after a tenth of them", first.core / MIB, "MiB"),
        Finding("core, growth since", (last.core - first.core) / MIB, "MiB", most=most),
    ]


def _reload(running: Running, pids: Sequence[int], file: Path, text: str, times: int) -> None:
    """Raises Failed: one was refused, or not taken over in time."""
    told = running.folder / "state" / "run" / "reload-0.json"
    for number in range(times):
        file.write_text(text.replace("[plugins.openai]", f"[models.m{number}]\n{_targets(text)}\n\n[plugins.openai]"))
        before, until = read(told).number, time.monotonic() + PATIENCE
        os.kill(pids[0], signal.SIGHUP)
        while (said := read(told)).number == before:
            if time.monotonic() > until:
                raise Failed(f"a reload took more than {PATIENCE:g} s")
            time.sleep(POLL_SECONDS)
        if not said.ok:
            raise Failed(f"a reload was refused: {said.problems}")


def _targets(text: str) -> str:
    """The line with the targets of the model that is asked for."""
    return next(line for line in text.splitlines() if line.startswith("targets"))
