"""What a running `headrace up` must endure: many open streams, many requests, long streams."""

from __future__ import annotations

import http.client
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import cpu
from .measure import Sample, sample
from .targets import Endpoint, Failed

KIB, MIB = 1024, 1024 * 1024
SHORT, LONG = 10, 1000
"""Chunks of the two."""
CONNECTIONS = 32
WARM_UP = ("--requests", "200", "--concurrency", "8")
"""What has run before memory is looked at: everything is imported, pools are filled a little."""
POLL_SECONDS = 0.1
SPREAD_SECONDS = 1.0
"""In which streams begin one after the other whose CPU time is looked at."""


class Limits(NamedTuple):
    """What is allowed; None: anything."""

    core_kib: float | None
    """What an open stream may add to the core's memory."""
    nginx_kib: float | None
    """What it may add to nginx's."""
    growth_mib: float | None
    """What memory may grow by between the first tenth of the requests and the last."""
    cpu_percent: float | None
    """How much more or less than a short stream a long one may cost the core."""


class Running(NamedTuple):
    """A target that has been started."""

    endpoint: Endpoint
    upstream: int
    """The upstream's port."""
    limits: Limits
    folder: Path
    """Where its configuration lies, and its state."""


class Finding(NamedTuple):
    """A figure and the range it has to be in; None: it is only told."""

    what: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def kept(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


class Memory(NamedTuple):
    """Bytes resident, pages that processes share counted for each."""

    core: int
    nginx: int


def streams(running: Running, count: int, chunks: int) -> list[Finding]:
    """`count` streams at the same time: none is lost, and each takes little memory."""
    with watched(running) as members:
        sample(running.endpoint, WARM_UP)
        before = memory_of(members)
        asked = ("--mode", "stream", "--requests", count, "--concurrency", count, "--chunks", chunks)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(sample, running.endpoint, list(map(str, asked)))
            peak = _peak(members, answers)
        report, limits = answers.result().report, running.limits
    return [
        *answered(f"streams of {chunks} chunks answered whole", report.completed, count, report.different),
        Finding("of them open at the same time", _stats(running)["most_streaming"], "", count, count),
        Finding("first byte, slowest of a hundred", report.first_byte_p99_ms, "ms"),
        Finding("core, memory per stream", (peak.core - before.core) / count / KIB, "KiB", most=limits.core_kib),
        Finding("nginx, memory per stream", (peak.nginx - before.nginx) / count / KIB, "KiB", most=limits.nginx_kib),
    ]


def memory(running: Running, count: int) -> list[Finding]:
    """`count` whole answers: memory stays where it is after the first tenth of them."""
    completed = different = 0
    part = max(1, count // 10)
    seen: list[Memory] = []
    with watched(running) as members:
        for _ in range(10):
            asked = ("--requests", str(part), "--concurrency", str(CONNECTIONS), "--chunks", "16")
            report = sample(running.endpoint, asked).report
            completed, different = completed + report.completed, different + report.different
            seen.append(memory_of(members))
    first, last, most = seen[0], seen[-1], running.limits.growth_mib
    return [
        *answered("requests answered whole", completed, 10 * part, different),
        Finding("core, memory after a tenth of them", first.core / MIB, "MiB"),
        Finding("core, growth since", (last.core - first.core) / MIB, "MiB", most=most),
        Finding("nginx, memory after a tenth of them", first.nginx / MIB, "MiB"),
        Finding("nginx, growth since", (last.nginx - first.nginx) / MIB, "MiB", most=most),
    ]


def core_cpu(running: Running, count: int, rounds: int) -> list[Finding]:
    """CPU time of the core alone for streams that last equally long, of few chunks and of many, in turns."""
    spent: dict[int, list[float]] = {SHORT: [], LONG: []}
    completed = different = 0
    with watched(running) as members:
        for _ in range(rounds):
            for chunks, own in spent.items():
                done = sample(running.endpoint, _paced(count, chunks), partial(cpu.seconds_of, members.core))
                completed, different = completed + done.report.completed, different + done.report.different
                own.append(done.cpu_us or 0.0)
    short, long = (statistics.median(own) for own in spent.values())
    allowed = running.limits.cpu_percent
    near, far = (None, None) if allowed is None else (1 - allowed / 100, 1 + allowed / 100)
    return [
        *answered("streams answered whole", completed, 2 * rounds * count, different),
        Finding(f"core, CPU per stream of {SHORT} chunks", short, "µs"),
        Finding(f"core, CPU per stream of {LONG} chunks", long, "µs"),
        Finding("the second to the first", long / max(short, 1e-9), "", near, far),
    ]


def _paced(count: int, chunks: int) -> list[str]:
    """Few at a time: what a chunk costs nginx and the clients must not keep the streams from their pace. They begin one
    after the other, and so they end: what ends at once the core does at once, and short streams keep in step better."""
    words = {"--requests": count, "--chunks": chunks, "--concurrency": 8, "--warm-up": 8, "--spread": SPREAD_SECONDS}
    return ["--mode", "stream", *(str(word) for pair in words.items() for word in pair)]


def answered(what: str, completed: int, expected: int, different: int) -> list[Finding]:
    return [
        Finding(what, completed, "", expected, expected),
        Finding("of them not the upstream's bytes", different, "", most=0),
    ]


@contextmanager
def watched(running: Running) -> Iterator[cpu.Members]:
    """The processes, which must be the same ones in the end. Raises Failed if one was started again."""
    root = running.endpoint.root
    assert root is not None
    members = cpu.members(root)
    if not (members.core and members.nginx):
        raise Failed(f"found no core or no nginx below process {root}: {members}")
    try:
        yield members
    except ProcessLookupError as error:
        raise Failed(f"{error} during the check") from error
    if cpu.members(root) != members:
        raise Failed(f"processes were started again during the check: {members} became {cpu.members(root)}")


def memory_of(members: cpu.Members) -> Memory:
    return Memory(cpu.resident_of(members.core), cpu.resident_of(members.nginx))


def _peak(members: cpu.Members, answers: Future[Sample]) -> Memory:
    """The most memory seen until the answers are there."""
    seen = [memory_of(members)]
    while not answers.done():
        wait([answers], POLL_SECONDS)
        seen.append(memory_of(members))
    return Memory(max(each.core for each in seen), max(each.nginx for each in seen))


def _stats(running: Running) -> dict[str, int]:
    """What the upstream counted."""
    connection = http.client.HTTPConnection("127.0.0.1", running.upstream, timeout=10)
    try:
        connection.request("GET", "/stats")
        counted: dict[str, int] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return counted


def table(findings: Sequence[Finding]) -> str:
    """For people: a line for each, and whether its limit was kept."""
    rows = [(each.what, _figure(each), _limit(each), _verdict(each)) for each in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{what.ljust(widths[0])}  {figure.rjust(widths[1])}  {limit.rjust(widths[2])}  {verdict}".rstrip()
        for what, figure, limit, verdict in rows
    )


def _figure(finding: Finding) -> str:
    places = 0 if not finding.unit and finding.value == int(finding.value) else 2 if not finding.unit else 1
    return f"{finding.value:,.{places}f} {finding.unit}".rstrip()


def _limit(finding: Finding) -> str:
    least, most = finding.least, finding.most
    if least is not None and least == most:
        return f"{least:,.0f}"
    if least is not None and most is not None:
        return f"{least:,.10g} to {most:,.10g}"
    if least is not None:
        return f"at least {least:g}"
    return "" if most is None else f"at most {most:g}"


def _verdict(finding: Finding) -> str:
    return "" if finding.least is None and finding.most is None else "ok" if finding.kept else "BROKEN"


Check = Callable[[Running], list[Finding]]
