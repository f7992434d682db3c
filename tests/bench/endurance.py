"""The command line of the checks that take a while; `endurance_checks.py` has what they look at."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .cli import count_of, raise_file_limit, say
from .endurance_checks import Check, Finding, Limits, Running, core_cpu, memory, streams, table
from .endurance_reloads import reloads
from .ledger import ledger
from .targets import Failed, Site, headrace_up, upstream

TARGETS = {
    "headrace-offload": ("offload", True),
    "headrace-offload-script": ("offload", False),
    "headrace-inline": ("inline", True),
}
"""The delivery, and whether nginx has our module."""
CONNECTIONS = 8192
"""What nginx's one worker may have open; a stream takes two, one of them to the client."""
CORE_KIB, CPU_PERCENT = 20.0, 20.0
"""Limits that hold only where nginx streams the replies."""
LASTING_MS = 1000.0
"""How long a stream takes whose CPU time is looked at."""
LONG_MS = 10_000.0
"""How long one takes that has many chunks."""


class Job(NamedTuple):
    """A check with its numbers, and how long the upstream's streams last for it."""

    check: Check
    lasting_ms: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print a table for each. The exit status is 1 if a limit was broken or a target fell over."""
    options = _options(arguments)
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    found: dict[str, list[Finding]] = {}
    for name, job in _jobs(options).items():
        say(f"{name}: {options.target}")
        try:
            found[name] = job()
        except Failed as error:
            say(f"{name}: {error}")
            return 1
        print(f"{options.target}, {name}\n{table(found[name])}\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(_as_json(options.target, found), indent=2, ensure_ascii=False) + "\n")
    return 0 if all(finding.kept for findings in found.values() for finding in findings) else 1


def _as_json(target: str, found: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    checks = {name: [{**each._asdict(), "kept": each.kept} for each in own] for name, own in found.items()}
    return {"target": target, "checks": checks}


def run(job: Job, target: str, limits: Limits) -> list[Finding]:
    """One check against a target started for it. Raises Failed."""
    delivery, with_module = TARGETS[target]
    with (
        tempfile.TemporaryDirectory(prefix="hr-bench-", ignore_cleanup_errors=True) as folder,
        upstream(lasting_ms=job.lasting_ms) as port,
        headrace_up(Site(Path(folder), port), delivery, with_module=with_module, connections=CONNECTIONS) as endpoint,
    ):
        return job.check(Running(endpoint, port, limits, Path(folder)))


def _jobs(options: argparse.Namespace) -> Mapping[str, Callable[[], list[Finding]]]:
    """Those asked for."""
    checks = {
        "streams": Job(partial(streams, count=options.streams, chunks=options.chunks), options.lasting * 1000),
        "long": Job(partial(streams, count=options.long_streams, chunks=options.long_chunks), LONG_MS),
        "memory": Job(partial(memory, count=options.requests), LASTING_MS),
        "cpu": Job(partial(core_cpu, count=options.cpu_streams, rounds=options.rounds), LASTING_MS),
        "reload": Job(partial(reloads, count=options.reloads), LASTING_MS),
    }
    target, limits = options.target, _limits(options)
    jobs: dict[str, Callable[[], list[Finding]]] = {
        **{name: partial(run, job, target, limits) for name, job in checks.items()},
        "ledger": partial(ledger, *TARGETS[target], options.ledger_requests, options.seed),
    }
    return {name: job for name, job in jobs.items() if name in (options.check or jobs)}


def _limits(options: argparse.Namespace) -> Limits:
    core_kib, cpu_percent = options.core_kib, options.cpu_percent
    if TARGETS[options.target][0] == "offload":
        core_kib = CORE_KIB if core_kib is None else core_kib
        cpu_percent = CPU_PERCENT if cpu_percent is None else cpu_percent
    return Limits(core_kib, options.nginx_kib, options.growth_mib, cpu_percent)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="endure.py",
        description="What Headrace must endure: many open streams, many requests, long streams.",
    )
    parser.add_argument("--target", choices=TARGETS, default="headrace-offload", help="what is checked (%(default)s)")
    parser.add_argument(
        "--check",
        choices=("streams", "long", "memory", "cpu", "reload", "ledger"),
        action="append",
        help="streams: what an open stream takes; long: what one of many chunks takes; "
        "memory: whether it stays over many requests; cpu: whether long streams cost the core more than short ones; "
        "reload: whether anything is lost, or grows, while configurations come and go; "
        "ledger: whether its totals are the engine's own after requests of all kinds, with Redis and PostgreSQL away "
        "for a while; "
        "may be repeated; left out: all",
    )
    parser.add_argument(
        "--streams", type=count_of, default=2000, help="streams: how many at the same time (%(default)s)"
    )
    parser.add_argument("--chunks", type=count_of, default=100, help="streams: content chunks of each (%(default)s)")
    parser.add_argument("--lasting", type=float, default=30.0, help="streams: seconds that each takes (%(default)g)")
    parser.add_argument("--long-streams", type=count_of, default=50, help="long: how many at once (%(default)s)")
    parser.add_argument("--long-chunks", type=count_of, default=2000, help="long: chunks of each (%(default)s)")
    parser.add_argument("--requests", type=count_of, default=200_000, help="memory: how many in all (%(default)s)")
    parser.add_argument("--cpu-streams", type=count_of, default=64, help="cpu: streams of a measurement (%(default)s)")
    parser.add_argument("--rounds", type=count_of, default=3, help="cpu: measurements of each length (%(default)s)")
    only = "with headrace-offload; otherwise none"
    parser.add_argument("--reloads", type=count_of, default=10_000, help="reload: how many (%(default)s)")
    parser.add_argument("--ledger-requests", type=count_of, default=10_000, help="ledger: how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="ledger: of their mix (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--core-kib", type=float, help=f"memory of the core for an open stream: {CORE_KIB:g} {only}")
    limits.add_argument(
        "--nginx-kib",
        type=float,
        default=64.0,
        help="memory of nginx for an open stream (%(default)g)",
    )
    limits.add_argument(
        "--growth-mib", type=float, default=5.0, help="growth of core or nginx over the requests (%(default)g)"
    )
    limits.add_argument("--cpu-percent", type=float, help=f"difference between streams: {CPU_PERCENT:g} {only}")
    return parser.parse_args(arguments)
