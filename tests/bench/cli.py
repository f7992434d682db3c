"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from . import decisions, peer_targets
from .load import CLIENT_USAGE
from .measure import Plan, Turn, take_turn
from .pages import RESULTS, draw
from .peers import PEERS
from .report import first_error, summary, table
from .targets import OWN, Endpoint, Failed, Site, Start, upstream

SLOW = 1.5
"""A stream that takes so many times as long as at the upstream's pace was held up."""
QUICK = {
    "rounds": 1,
    "requests": 60,
    "streams": 8,
    "warm_up": 8,
    "chunks": 10,
    "pace": 1.0,
    "seconds": 5.0,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure in turns, print the table, write the JSON. The exit status is 1 if an answer of ours was not right."""
    options = parsed(arguments)
    if options.draw:
        return _draw()
    if options.decisions:
        return decisions.main(options.redis)
    available = {**OWN, **peer_targets.installed()}
    for name in (name for name in peer_targets.STARTS if name not in available):
        say(f"{name} is not installed, so it is left out (make bench-peers installs it)")
    chosen = {name: available[name] for name in options.targets or available if name in available}
    plan = _plan(options)
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    load_before = os.getloadavg()
    try:
        turns = _measure({"upstream": OWN["upstream"], **chosen}, plan, options.rounds)
    except Failed as error:
        say(str(error))
        return 1
    figures = summary(turns)
    for name, own in turns.items():
        if text := first_error(own):
            say(f"{name}: {text}")
        if (took := figures[name]["stream_p50_ms"]) > SLOW * plan.chunks * plan.pace_ms > 0:
            say(f"{name}: could not keep the pace, streams took {took:,.0f} ms; chunks that pile up cost it less")
    settings = {**msgspec.to_builtins(plan), "rounds": options.rounds}
    results = {"targets": figures, "settings": settings, "machine": _machine(load_before)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(table(figures, plan.chunks))
    if options.json == RESULTS:
        _draw()
    wrong = [name for name, own in figures.items() if name in OWN and (own["errors"] or not own["equal"])]
    return 1 if wrong else 0


def _draw() -> int:
    for path in draw():
        say(f"wrote {path}")
    return 0


def _measure(starts: Mapping[str, Start], plan: Plan, rounds: int) -> dict[str, list[Turn]]:
    """Everything runs at the same time and is measured in turns: A B C A B C. What cannot be started is left out."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(upstream(plan.pace_ms))
        found = {name: _started(name, start, port, stack) for name, start in starts.items()}
        endpoints = {name: endpoint for name, endpoint in found.items() if endpoint is not None}
        turns: dict[str, list[Turn]] = {name: [] for name in endpoints}
        for number in range(rounds):
            for name, endpoint in endpoints.items():
                say(f"round {number + 1} of {rounds}: {name}")
                turns[name].append(take_turn(endpoint, plan))
    return turns


def _started(name: str, start: Start, port: int, stack: contextlib.ExitStack) -> Endpoint | None:
    """The endpoint, or None if it is another's gateway that does not start. Raises Failed if it is ours."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-bench-", ignore_cleanup_errors=True))
    say(f"starting {name}")
    try:
        return stack.enter_context(start(Site(Path(folder), port)))
    except Failed as error:
        if name in OWN:
            raise Failed(f"{name} does not start: {error}") from error
        say(f"{name} does not start, so it is left out: {error}")
        return None


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        requests=options.requests,
        streams=options.streams,
        warm_up=options.warm_up,
        concurrency=options.concurrency,
        chunks=options.chunks,
        pace_ms=options.pace,
        prompt_bytes=options.prompt_bytes,
        seconds=options.seconds,
        usage=options.client_usage,
    )


def raise_file_limit() -> None:
    """As many open connections as the system allows, here and in every process started from here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _machine(load: tuple[float, float, float]) -> dict[str, Any]:
    """What the figures depend on; the load is that of the last minute before the start."""
    return {
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_before": round(load[0], 2),
        "headrace": version("headrace"),
        "peers": {name: peer.version for name, peer in PEERS.items() if peer.installed()},
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; where no `json` is given, it is filled in. Exits with status 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="What a request costs in nginx alone, in Headrace, and in other gateways.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = [*OWN, *peer_targets.STARTS]
    parser.add_argument("--targets", type=_names, metavar="A,B", help=f"which of {', '.join(known)}; left out: all")
    parser.add_argument("--rounds", type=count_of, default=5, help="turns of each target; medians are reported")
    parser.add_argument(
        "--requests",
        type=count_of,
        default=4_000,
        help="whole answers per measurement over the most connections; over fewer a quarter of them",
    )
    parser.add_argument("--streams", type=count_of, default=32, help="streams per measurement")
    parser.add_argument("--concurrency", type=_counts, default=(1, 32), metavar="N,M", help="numbers of connections")
    parser.add_argument("--chunks", type=count_of, default=100, help="content chunks of a stream")
    parser.add_argument(
        "--pace", type=float, default=40.0, help="milliseconds between two chunks, in step with each other; 0: at once"
    )
    parser.add_argument(
        "--warm-up", type=count_of, default=200, help="requests before each measurement that do not count"
    )
    parser.add_argument("--prompt-bytes", type=count_of, default=500, help="length of the prompt")
    parser.add_argument("--seconds", type=float, default=10.0, help="start no request after so long in a measurement")
    parser.add_argument("--client-usage", action=argparse.BooleanOptionalAction, default=True, help=CLIENT_USAGE)
    parser.add_argument(
        "--json",
        type=Path,
        help="where the results go; left out: results.json beside the benchmark, from which the documentation is "
        "drawn, or nowhere if --targets leaves some out",
    )
    parser.add_argument(
        "--decisions", action="store_true", help="only what keys, ratelimit and budget add to a request"
    )
    parser.add_argument("--redis", metavar="URL", help="with --decisions: a Redis or Valkey to count in as well")
    parser.add_argument("--draw", action="store_true", help="only draw chart and tables of docs/ from results.json")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few requests, to see that everything works; writes no results unless told where",
    )
    if "--quick" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    if options.json is None and not (options.quick or options.targets):
        options.json = RESULTS
    if unknown := [name for name in options.targets or () if name not in known]:
        parser.error(f"--targets: there is no {', '.join(unknown)} (there are: {', '.join(known)})")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def count_of(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({count_of(part) for part in text.split(",")}))


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {line}", file=sys.stderr, flush=True)
