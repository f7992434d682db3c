"""Targets, requests and policies without a gateway; a gateway with several backends."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import GatewayError
from headrace.exchange import Attempt, Exchange, Outcome, Principal, Target, Usage
from headrace.models import Model
from headrace.providers import RoutingPolicy
from headrace.testing import FakeBackend, Running, serve
from headrace_routing import Plugin
from headrace_routing.config import PolicyConfig, RoutingConfig
from headrace_routing.engine import Loads
from headrace_routing.kinds import Means, make_policies

PATH = "/v1/chat/completions"


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_targets(count: int, weights: Sequence[int] = (), names: Sequence[str] = ()) -> tuple[Target, ...]:
    return tuple(
        Target(
            name=names[number] if names else f"gpu{number}",
            provider="openai",
            base_url=f"http://gpu{number}/v1",
            weight=weights[number] if weights else 1,
        )
        for number in range(count)
    )


def make_exchange(
    targets: Sequence[Target] = (),
    *,
    headers: dict[str, str] | None = None,
    who: Principal | None = None,
    policy: Any = None,
    **fields: Any,
) -> Exchange:
    """A request for a chat of a model with these targets."""
    message = {"role": "user", "content": "hi"}
    body = msgspec.json.encode({"model": "test", "messages": [message], "stream": True, **fields})
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    endpoint = OPENAI_ENDPOINTS[PATH]
    exchange = Exchange(
        id="1", endpoint=endpoint, scope={"headers": raw, "method": "POST", "path": PATH, "client": None}, body=body
    )
    exchange.peek, exchange.principal = endpoint.read(body), who
    exchange.model = Model("test", tuple(targets), policy, "auto")
    return exchange


def make_policy(
    kind: str,
    *,
    config: RoutingConfig | None = None,
    loads: Loads | None = None,
    clock: Callable[[], float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A policy as the configuration makes it."""
    own = PolicyConfig(kind=kind, **options)  # type: ignore[arg-type]
    whole = msgspec.structs.replace(config or RoutingConfig(), policies={kind: own})
    policies: dict[str, RoutingPolicy] = make_policies(
        whole, Means(random.Random(seed), loads or Loads(), clock or Clock())
    )
    for each in policies.values():
        if hasattr(each, "bind"):
            each.bind(policies)
    return policies[kind]


def learn(
    policy: Any,
    target: Target,
    *,
    began: float = 0.0,
    first: float | None = None,
    whole: float = 0.0,
    tokens: int | None = None,
    error: GatewayError | None = None,
    **fields: Any,
) -> None:
    """Tell a policy how a try has ended."""
    attempt = make_attempt(make_exchange((target,), stream=fields.pop("stream", True)), target, began)
    policy.learn(attempt, make_outcome(first, whole, tokens, error, **fields))


def make_attempt(exchange: Exchange, target: Target, began: float = 0.0) -> Attempt:
    attempt = Attempt(exchange, 1, target, None)
    attempt.started = began
    return attempt


def make_outcome(
    first: float | None = None,
    whole: float = 0.0,
    tokens: int | None = None,
    error: GatewayError | None = None,
    **fields: Any,
) -> Outcome:
    usage = Usage(10, tokens) if tokens is not None else None
    ended = {"status": error.status if error is not None else 200, "completed": error is None, **fields}
    return Outcome(error=error, usage=usage, ttft_seconds=first, duration_seconds=whole, **ended)


class Kit(NamedTuple):
    """What tests of policies need."""

    targets: Callable[..., tuple[Target, ...]] = make_targets
    exchange: Callable[..., Exchange] = make_exchange
    policy: Callable[..., Any] = make_policy
    learn: Callable[..., None] = learn
    attempt: Callable[..., Attempt] = make_attempt
    outcome: Callable[..., Outcome] = make_outcome
    clock: type[Clock] = Clock


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


class Named:
    """Callers are whoever they say they are: `X-Api-Key: NAME/TEAM`."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, team = (exchange.header(b"x-api-key") or "nobody").partition("/")
        return Principal(id=name, team=team or None, role="admin" if name == "root" else "user")


class Gateway(NamedTuple):
    """A running gateway whose model `test` has several backends."""

    backends: Sequence[FakeBackend]
    client: httpx.AsyncClient
    running: Running

    async def ask(self, who: str = "ada", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "test", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post(PATH, json=body, headers={"x-api-key": who, **(headers or {})})

    @property
    def shares(self) -> list[int]:
        """How many requests each backend has had, those for metrics aside."""
        return [sum(path == PATH for path, *_ in each.requests) for each in self.backends]


@contextlib.asynccontextmanager
async def run_gateway(
    policy: str,
    count: int = 3,
    *,
    weights: Sequence[int] = (),
    models: Sequence[str] = (),
    fallback: Sequence[str] = (),
    **routing: Any,
) -> AsyncIterator[Gateway]:
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(FakeBackend()) for _ in range(count)]
        document = {
            "backends": {
                f"gpu{number}": {"provider": "openai", "base_url": each.url, "weight": (weights or [1] * count)[number]}
                for number, each in enumerate(backends)
            },
            "models": {
                name: {
                    "targets": [f"gpu{number}" for number in range(count) if f"gpu{number}" not in fallback],
                    "fallback": list(fallback),
                    "policy": each,
                }
                for name, each in (("test", policy), *((each, each) for each in models))
            },
            "plugins": {"openai": {}, "routing": routing},
        }
        running = await stack.enter_async_context(serve(document, {"named": Named, "routing": Plugin}))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))
        yield Gateway(backends, client, running)


@pytest.fixture(scope="session")
def gateway() -> Any:
    """A context: a running gateway with this policy.

    `models` are more policies, each of a model of its name; `fallback` are some of the backends. Other keywords
    are `[plugins.routing]`.
    """
    return run_gateway
