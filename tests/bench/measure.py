"""One target's turn: load it in each way, and take what its processes cost meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from . import cpu
from .load import Report
from .targets import PACKAGES, Endpoint

MIB = 1024 * 1024
LIMIT_SECONDS = 600.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What every target is asked in one round. Counts are requests of one measurement."""

    requests: int
    """Over the most connections. Over fewer, where it is the time of a single one that counts, it is a quarter."""
    streams: int
    warm_up: int
    concurrency: tuple[int, ...]
    chunks: int
    pace_ms: float
    prompt_bytes: int
    seconds: float
    """No request is started after so long in one measurement."""
    usage: bool
    """Whether clients ask streams for their token usage."""


class Sample(msgspec.Struct, kw_only=True):
    """One measurement: what the clients saw, and what the gateway's processes used."""

    report: Report
    cpu_us: float | None
    """CPU microseconds of the whole process tree per answered request; None where there is no such tree, or none left,
    or no answer."""


class Turn(msgspec.Struct, kw_only=True):
    """Everything measured of one target in one round."""

    unary: dict[int, Sample]
    """By the number of connections."""
    stream: Sample
    rss_mb: float | None

    def samples(self) -> list[Sample]:
        return [*self.unary.values(), self.stream]


def take_turn(endpoint: Endpoint, plan: Plan) -> Turn:
    """Measure a target: whole answers over each number of connections, then streams over the largest."""
    most = max(plan.concurrency)
    unary = {many: sample(endpoint, _unary(plan, many)) for many in plan.concurrency}
    stream = sample(endpoint, _stream(plan, most))
    resident = None if endpoint.root is None else cpu.resident(endpoint.root) / MIB
    return Turn(unary=unary, stream=stream, rss_mb=resident)


def _unary(plan: Plan, many: int) -> list[str]:
    requests = plan.requests if many == max(plan.concurrency) else max(1, plan.requests // 4)
    return ["--mode", "unary", "--requests", str(requests), *_common(plan, many, max(plan.warm_up, many))]


def _stream(plan: Plan, many: int) -> list[str]:
    usage = [] if plan.usage else ["--no-client-usage"]
    return ["--mode", "stream", "--requests", str(plan.streams), *usage, *_common(plan, many, many)]


def _common(plan: Plan, many: int, warm_up: int) -> list[str]:
    numbers = {
        "--concurrency": many,
        "--warm-up": warm_up,
        "--seconds": plan.seconds,
        "--chunks": plan.chunks,
        "--prompt-bytes": plan.prompt_bytes,
    }
    return [word for name, number in numbers.items() for word in (name, str(number))]


def sample(endpoint: Endpoint, arguments: Sequence[str], used: Callable[[], float] | None = None) -> Sample:
    """Run a load generator against it; the warm-up is not part of what is measured.

    `used` tells the CPU seconds spent so far; left out, they are those of the whole process tree.

    Raises:
        subprocess.SubprocessError: the load generator failed.
    """
    used = used or partial(_used, endpoint)
    command = [sys.executable, "-m", "bench.load", "--wait", "--port", str(endpoint.port), "--model", endpoint.model]
    command += [word for header in endpoint.headers for word in ("--header", header)]
    with subprocess.Popen(
        [*command, *arguments], cwd=PACKAGES, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as generator:
        assert generator.stdin is not None and generator.stdout is not None
        try:
            generator.stdout.readline()  # WARM
            before = used()
            printed, _ = generator.communicate(b"go\n", timeout=LIMIT_SECONDS)
            after = used()
        finally:
            generator.kill()
    if generator.returncode:
        raise subprocess.CalledProcessError(generator.returncode, "bench.load")
    report = msgspec.json.decode(printed, type=Report)
    known = endpoint.root is not None and report.completed and after > before
    return Sample(report=report, cpu_us=(after - before) * 1e6 / report.completed if known else None)


def _used(endpoint: Endpoint) -> float:
    return 0.0 if endpoint.root is None else cpu.seconds(endpoint.root)
