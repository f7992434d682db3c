"""What deciding costs: CPU time that `keys`, `ratelimit` and `budget` add to a request, from the key to the settlement.

    python tests/bench/run.py --decisions [--redis redis://127.0.0.1:6379/0]

Runs in one process, without sockets but for Redis's: the pipeline's own steps, `identify` and `admit`, over and over,
with the plugins and without them, in turns. What is reported is the least of all rounds, for other load on the machine
only ever adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Attempt, Exchange, Usage
from headrace.gateway import Gateway
from headrace.pipeline import identify
from headrace.server import GARBAGE_AT
from headrace.settings import parse

ROUNDS = 7
REQUESTS = 3000
CONCURRENCY = 32
PRICES = {"bench": {"input": 0.15, "output": 0.60}}
PLUGINS: Mapping[str, Mapping[str, Any]] = {
    "keys": {"development_key": True},
    "ratelimit": {"limits": [{"requests_per_minute": 10**9, "tokens_per_minute": 10**12}]},
    "budget": {"limits": [{"cost_per_month": 1e6}], "prices": PRICES},
}
"""Each caller has so many requests and tokens a minute, and a budget for the month."""
EVERYBODY: Mapping[str, Any] = {
    "limits": [
        {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent": 10_000},
        {"per": [], "tokens_per_minute": 10**12},
    ]
}
MORE: Mapping[str, Mapping[str, Any]] = {
    **PLUGINS,
    "ratelimit": EVERYBODY,
    "budget": {"limits": [{"cost_per_month": 1e6}, {"per": [], "cost_per_month": 1e8}], "prices": PRICES},
}
"""The same, and how many may be open; everybody together has tokens and a budget, too."""
BODY = msgspec.json.encode(
    {"model": "bench", "messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 100}
)


class Figure(msgspec.Struct):
    """CPU time of one request's decisions, in microseconds."""

    name: str
    cpu_us: float


async def measure(redis: str | None = None) -> list[Figure]:
    """The figures: nothing, each plugin added to those before, and all of them with Redis."""
    names = list(PLUGINS)
    variants: dict[str, dict[str, Any]] = {"none": {}}
    for count in range(1, len(names) + 1):
        variants["+".join(names[:count])] = {name: PLUGINS[name] for name in names[:count]}
    variants["the same, six limits"] = dict(MORE)
    if redis:
        variants["three limits, redis"] = {**PLUGINS, "redis": {"url": redis}}
    async with contextlib.AsyncExitStack() as stack:
        gateways = {name: await stack.enter_async_context(_running(plugins)) for name, plugins in variants.items()}
        found: dict[str, list[float]] = {name: [] for name in gateways}
        for _ in range(ROUNDS):
            for name, (gateway, headers) in gateways.items():
                found[name].append(await _round(gateway, headers))
    return [Figure(name, min(rounds)) for name, rounds in found.items()]


@contextlib.asynccontextmanager
async def _running(plugins: Mapping[str, Any]) -> AsyncIterator[tuple[Gateway, list[tuple[bytes, bytes]]]]:
    with tempfile.TemporaryDirectory(prefix="hr-bench-") as folder:
        document = {
            "server": {"anonymous": True, "state_dir": folder},
            "models": {"bench": {"targets": [{"provider": "openai", "base_url": "http://127.0.0.1:1"}]}},
            "plugins": {"openai": {}, **plugins},
        }
        gateway = Gateway(parse(document), "bench").assemble()
        async with gateway.running():
            key = Path(folder, "development.key")
            headers = [(b"content-type", b"application/json"), (b"accept", b"*/*")]
            if key.exists():
                headers.append((b"authorization", b"Bearer " + key.read_bytes().strip()))
            yield gateway, headers


async def _round(gateway: Gateway, headers: list[tuple[bytes, bytes]]) -> float:
    async def client() -> None:
        for _ in range(REQUESTS // CONCURRENCY):
            await _decide(gateway, headers)

    await client()
    before = time.process_time()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return (time.process_time() - before) * 1e6 / (REQUESTS // CONCURRENCY * CONCURRENCY)


async def _decide(gateway: Gateway, headers: list[tuple[bytes, bytes]]) -> None:
    """What the pipeline does of a request before a backend is asked, and after it has answered."""
    endpoint = OPENAI_ENDPOINTS["/v1/chat/completions"]
    scope = {"headers": headers, "method": "POST", "path": endpoint.path, "client": ("127.0.0.1", 1)}
    exchange = Exchange(id="bench", endpoint=endpoint, scope=scope, body=BODY)
    exchange.principal = await identify(exchange, gateway)
    exchange.peek = endpoint.read(BODY)
    exchange.model = gateway.models.find(exchange.peek.model)
    async with gateway.hooks.admit(exchange):
        await asyncio.sleep(0)  # here others get their turn, as they do while a backend is asked
        exchange.attempts.append(Attempt(exchange, 1, exchange.model.targets[0], None))
        exchange.usage = Usage(prompt_tokens=120, completion_tokens=80)
    exchange.attempts[0].let_go()


def main(redis: str | None) -> int:
    """Print the figures."""
    gc.freeze()  # as the server does
    gc.set_threshold(GARBAGE_AT)
    figures = asyncio.run(measure(redis))
    for figure in figures:
        added = figure.cpu_us - figures[0].cpu_us
        print(f"{figure.name:<28}{figure.cpu_us:8.1f} us a request{added:+8.1f} us", file=sys.stdout)
    return 0
