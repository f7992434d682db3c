"""Engines that exist in numbers alone, with prefix caches and a clock of their own; and requests for them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Attempt, Exchange, Outcome, Target, Usage
from headrace.testing import FakeBackend
from headrace_prefix import PrefixConfig, learning
from headrace_prefix.known import Backends
from headrace_prefix.policy import PrefixPolicy

ENGINE_BLOCK = 64
"""Bytes: vLLM's blocks have 16 tokens."""
BYTES_PER_TOKEN = 4
PREFILL_RATE = 10_000.0
"""Tokens a second."""
TOKEN_SECONDS = 0.01
"""Of an answer."""


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cache:
    """An engine's prefix cache: the least recently used blocks go first, of one prompt the last ones."""

    def __init__(self, blocks: float) -> None:
        self.capacity = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def use(self, chain: Sequence[int]) -> int:
        """Compute a text. Returns how many bytes of it were there."""
        found = sum(1 for _ in itertools.takewhile(self._blocks.__contains__, chain))
        for block in reversed(chain):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)
        return found * ENGINE_BLOCK

    def clear(self) -> None:
        self._blocks.clear()


def engine_blocks(text: str) -> list[int]:
    """A text as an engine caches it: each block by a hash of everything up to its end."""
    value, found = 0, []
    for at in range(0, len(text) - ENGINE_BLOCK + 1, ENGINE_BLOCK):
        value = hash((value, text[at : at + ENGINE_BLOCK]))
        found.append(value)
    return found


class Engine:
    """One backend. Prompts are computed one after the other, answers side by side."""

    def __init__(self, name: str, blocks: float, weight: int = 1) -> None:
        self.target = Target(name=name, provider="fake", base_url="http://127.0.0.1:9", weight=weight)
        self.cache = Cache(blocks)
        self.caching = True
        self.requests = 0
        self.load = 0.0
        """Requests in flight, by the seconds they were."""
        self._free_at = 0.0

    def run(self, chain: Sequence[int], size: int, answer: int, now: float) -> tuple[float, int]:
        """Returns when the answer is complete, and how many bytes of the prompt were in the cache."""
        cached = self.cache.use(chain) if self.caching else 0
        self.requests += 1
        self._free_at = max(now, self._free_at) + (size - cached) / BYTES_PER_TOKEN / PREFILL_RATE
        return self._free_at + answer / BYTES_PER_TOKEN * TOKEN_SECONDS, cached


def words(rng: random.Random, size: int) -> str:
    return " ".join(f"{rng.getrandbits(24):x}" for _ in range(size // 7 + 1))[:size]


def make_exchange(fields: dict[str, Any], path: str = "/v1/chat/completions") -> Exchange:
    body = json.dumps(fields).encode()
    scope = {"headers": [], "method": "POST", "path": path, "client": ("127.0.0.1", 1)}
    exchange = Exchange(id="x", endpoint=OPENAI_ENDPOINTS[path], scope=scope, body=body)
    exchange.peek = exchange.endpoint.read(body)
    return exchange


Order = Callable[[Exchange, Sequence[Target]], Sequence[Target]]


class Routing:
    """The policy as the plugin runs it, by the clock of a simulation."""

    def __init__(self, clock: Callable[[], float], **config: Any) -> None:
        self.config = PrefixConfig(**config)
        self.backends = Backends(self.config, clock)
        self.policy = PrefixPolicy("prefix", self.config, self.config, self.backends)
        self.order = self.policy.order

    def begin(self, exchange: Exchange, target: Target, number: int = 1) -> Attempt:
        attempt = Attempt(exchange, number, target, None)
        attempt.begin()
        learning.begin(attempt, self.backends, self.config.block_bytes)
        return attempt

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.end()
        learning.end(attempt, outcome, self.backends, self.config.block_bytes)

    def ask(self, exchange: Exchange, targets: Sequence[Target], cached: int = 0, of: int = 1000) -> Target:
        """One request from beginning to end. Returns who was asked."""
        target = self.order(exchange, targets)[0]
        usage = Usage(of, 10, cached)
        self.end(self.begin(exchange, target), Outcome(status=200, completed=True, usage=usage))
        return target


class Workload:
    """Tenants, each with a system prompt, whose users hold conversations."""

    def __init__(self, seed: int, *, tenants: int = 6, turns: tuple[int, int] = (1, 8), pause: float = 5.0) -> None:
        self.rng = random.Random(seed)
        self.turns, self.pause = turns, pause
        self.systems = [words(self.rng, self.rng.randint(1000, 4000)) for _ in range(tenants)]
        self.weights = [1 / (number + 1) for number in range(tenants)]

    def conversation(self) -> list[dict[str, str]]:
        system = self.rng.choices(self.systems, self.weights)[0]
        return [{"role": "system", "content": system}, self.says()]

    def says(self) -> dict[str, str]:
        return {"role": "user", "content": words(self.rng, self.rng.randint(50, 600))}


class Simulation:
    """Conversations beside one another at some engines."""

    def __init__(self, engines: list[Engine], workload: Workload, order: Order | None = None, **config: Any) -> None:
        self.clock = Clock()
        self.routing = Routing(self.clock, **config)
        self.order = order or self.routing.order
        self.engines = {engine.target.name: engine for engine in engines}
        self.targets = [engine.target for engine in engines]
        self.unbounded, self.joint = Cache(float("inf")), Cache(sum(engine.cache.capacity for engine in engines))
        self.bytes = self.cached = self.best = self.best_joint = 0
        self._workload = workload
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self, requests: int, at_once: int) -> Simulation:
        """So many requests more, of so many conversations at any time."""
        for _ in range(at_once - len(self._events)):
            self._begin()
        goal = self.requests + requests
        while self.requests < goal:
            time, _, event = heapq.heappop(self._events)
            for engine in self.engines.values():
                engine.load += (time - self.clock.now) * engine.target.state.in_flight
            self.clock.now = time
            event()
        return self

    def forget(self) -> None:
        """Count anew: what was counted so far was the warming up."""
        self.bytes = self.cached = self.best = self.best_joint = 0
        for engine in self.engines.values():
            engine.load, engine.requests = 0.0, 0

    @property
    def requests(self) -> int:
        return sum(engine.requests for engine in self.engines.values())

    @property
    def hit_rate(self) -> float:
        return self.cached / self.bytes

    @property
    def imbalance(self) -> float:
        """The busiest engine's load, by the mean."""
        loads = [engine.load / engine.target.weight for engine in self.engines.values()]
        return max(loads) * len(loads) / sum(loads)

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _begin(self) -> None:
        messages, turns = self._workload.conversation(), self._workload.rng.randint(*self._workload.turns)
        self._at(self.clock.now + self._pause(), lambda: self._ask(messages, turns))

    def _pause(self) -> float:
        return self._workload.rng.expovariate(1 / self._workload.pause)

    def _ask(self, messages: list[dict[str, str]], turns: int) -> None:
        exchange = make_exchange({"model": "m", "messages": messages})
        target = self.order(exchange, self.targets)[0]
        attempt = self.routing.begin(exchange, target)
        text = "".join(f"<{each['role']}>{each['content']}\n" for each in messages)
        answer = words(self._workload.rng, self._workload.rng.randint(100, 800))
        chain = engine_blocks(text)
        ends, cached = self.engines[target.name].run(chain, len(text), len(answer), self.clock.now)
        self.bytes += len(text)
        self.cached += cached
        self.best += self.unbounded.use(chain)
        self.best_joint += self.joint.use(chain)
        usage = Usage(len(text) // BYTES_PER_TOKEN, len(answer) // BYTES_PER_TOKEN, cached // BYTES_PER_TOKEN)
        outcome = Outcome(status=200, completed=True, usage=usage)
        grown = [*messages, {"role": "assistant", "content": answer}, self._workload.says()]
        self._at(ends, lambda: self._end(attempt, outcome, grown, turns))

    def _end(self, attempt: Attempt, outcome: Outcome, messages: list[dict[str, str]], turns: int) -> None:
        self.routing.end(attempt, outcome)
        if turns > 1:
            self._at(self.clock.now + self._pause(), lambda: self._ask(messages, turns - 1))
        else:
            self._begin()


def round_robin() -> Order:
    count = itertools.count()

    def order(exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        return [targets[next(count) % len(targets)]]

    return order


def least_busy(exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
    return sorted(targets, key=lambda target: target.state.in_flight / target.weight)


class CachingBackend(FakeBackend):
    """Remembers the prompts it has seen, and reports how much of one it knew.

    Attributes:
        caches: whether it keeps what it has computed.
        reports: whether it says how much was cached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.caches = self.reports = True
        self.hold = asyncio.Event()
        self.hold.set()
        self._seen: list[str] = []

    @property
    def asked(self) -> int:
        return sum(path.endswith("/chat/completions") for path, _, _ in self.requests)

    def flush(self) -> None:
        self._seen.clear()

    def usage(self, body: bytes) -> dict[str, Any]:
        text = "".join(each["content"] for each in msgspec.json.decode(body)["messages"])
        known = max((_common(text, each) for each in self._seen), default=0)
        if self.caches:
            self._seen.append(text)
        details = {"prompt_tokens_details": {"cached_tokens": known // 4} if known else None}
        return {
            "prompt_tokens": len(text) // 4,
            "completion_tokens": 1,
            "total_tokens": len(text) // 4 + 1,
            **(details if self.reports else {}),
        }

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if not path.endswith("/chat/completions") or self.status != 200:
            return await super()._answer(path, body, writer)
        await self.hold.wait()
        fields, usage = msgspec.json.decode(body), self.usage(body)
        if fields.get("stream"):
            choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
            events = [{"choices": [choice]}]
            if (fields.get("stream_options") or {}).get("include_usage"):
                events.append({"choices": [], "usage": usage})  # type: ignore[dict-item]
            told = b"".join(b"data: " + msgspec.json.encode({"id": "c", **each}) + b"\n\n" for each in events)
            told += b"data: [DONE]\n\n"
            kind = "text/event-stream"
        else:
            message = {"role": "assistant", "content": "hi"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            told, kind = msgspec.json.encode({"id": "c", "choices": [choice], "usage": usage}), "application/json"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(told)}\r\n\r\n".encode() + told)
        await writer.drain()
        return True


def _common(one: str, other: str) -> int:
    both = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def routing(clock: Clock) -> Callable[..., Routing]:
    """The policy with a configuration of one's own, by the clock of the test."""
    return lambda **config: Routing(clock, **config)


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Exchange]:
    """A request with these fields."""
    return make_exchange


@pytest.fixture(scope="session")
def targets() -> Callable[..., list[Target]]:
    """So many targets, of such weights."""

    def make(count: int, weights: Sequence[int] = ()) -> list[Target]:
        return [
            Target(name=f"gpu{number}", provider="fake", base_url="http://127.0.0.1:9", weight=weight)
            for number, weight in enumerate(weights or [1] * count)
        ]

    return make


@pytest.fixture(scope="session")
def chat() -> Callable[..., Exchange]:
    """A request for a conversation whose system prompt is so many times the same word, and whose turns these are."""

    def make(*turns: str, system: str = "", size: int = 2000, **fields: Any) -> Exchange:
        messages = [{"role": "system", "content": (system * size)[:size]}] if system else []
        messages += [{"role": "user", "content": turn} for turn in turns]
        return make_exchange({"model": "m", "messages": messages, **fields})

    return make


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Simulation]:
    """A simulation that is warm: engines of so many blocks (or of these weights), conversations, and who routes."""

    def run(
        policy: str = "prefix",
        *,
        weights: Sequence[int] = (1,) * 8,
        blocks: int = 3000,
        at_once: int = 64,
        requests: int = 1200,
        seed: int = 1,
        workload: dict[str, Any] | None = None,
        **config: Any,
    ) -> Simulation:
        engines = [Engine(f"gpu{number}", blocks, weight) for number, weight in enumerate(weights)]
        orders = {"prefix": None, "round_robin": round_robin(), "least_busy": least_busy}
        simulation = Simulation(engines, Workload(seed, **(workload or {})), orders[policy], **config)
        simulation.run(requests // 2, at_once).forget()
        return simulation.run(requests, at_once)

    return run


@pytest.fixture(scope="session")
def caching_backend() -> type[CachingBackend]:
    """A backend on a real socket that has a prefix cache."""
    return CachingBackend
