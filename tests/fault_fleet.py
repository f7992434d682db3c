"""A gateway before backends that fail, and a caller who asks it with OpenAI's own client."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2
import openai

from .faults import Upstream, upstream
from .processes import until
from .stack import Answer, Route, Stack

WAYS = ("inline", "offload", "module")
HELLO = [{"role": "user", "content": "What does the wheel do?"}]
TIMEOUTS = "timeouts = { connect = 5, first_byte = 30, idle = 30 }"
"""On a busy machine a backend that is well may take long."""
HURRIED = "timeouts = { connect = 1, first_byte = 1, idle = 1 }"
"""Of one whose silence is to be noticed."""
COUNTED = """
[[plugins.ratelimit.limits]]
tokens_per_day = 1_000_000
[plugins.budget]
unpriced = "free"
[[plugins.budget.limits]]
cost_per_day = 1_000_000
"""
"""Plugins that count what a caller uses, and limit nobody; prices follow."""
CLOSE_LIMIT = 1.0
"""Seconds from a request's end until its backend knows: a quarter is what is promised, on a machine that is at rest."""


@dataclass
class Got:
    """What a caller got."""

    identifier: str
    text: str = ""
    model: str = ""
    """Who says that it has answered."""
    finish: str | None = None
    usage: Any = None
    call: str = ""
    """The arguments of the function that is called."""
    chunks: list[Any] = field(default_factory=list)
    error: Exception | None = None
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        return self.error is None and self.finish is not None

    @property
    def status(self) -> int:
        """Of the answer: 200 for a stream that broke later, 0 if the connection broke."""
        if isinstance(self.error, openai.APIStatusError):
            return self.error.status_code
        return 0 if isinstance(self.error, openai.APIConnectionError | httpx2.HTTPError) else 200

    @property
    def code(self) -> str | None:
        return getattr(self.error, "code", None)

    @property
    def body(self) -> dict[str, Any]:
        """The error as it is told."""
        assert isinstance(self.error, openai.APIError)
        return cast("dict[str, Any]", self.error.body)

    @property
    def headers(self) -> Any:
        assert isinstance(self.error, openai.APIStatusError)
        return self.error.response.headers

    def add(self, chunk: Any) -> None:
        """One chunk of a stream, or the one answer."""
        self.chunks.append(chunk)
        self.model, self.usage = chunk.model or self.model, chunk.usage or self.usage
        for choice in chunk.choices:
            said = getattr(choice, "delta", None) or choice.message
            self.text += said.content or ""
            self.call += "".join(each.function.arguments for each in said.tool_calls or ())
            self.finish = choice.finish_reason or self.finish


class Fleet:
    """The gateway, its backends by name, and the caller."""

    def __init__(self, way: str, stack: Stack, backends: dict[str, Upstream]) -> None:
        self.way, self.stack, self.backends = way, stack, backends
        self.route = Route("nginx", stack)
        self.client = self.route.sdk()
        self.plugins = ""
        """What the test calls those that are loaded."""

    def __getitem__(self, name: str) -> Upstream:
        return self.backends[name]

    def reset(self) -> None:
        self.stack.reset()
        for each in self.backends.values():
            each.reset()

    def asked(self) -> dict[str, int]:
        """How often each backend was asked, if it was."""
        return {name: len(each.requests) for name, each in self.backends.items() if each.requests}

    def ask(self, model: str, stream: bool = False, key: str | None = None, **fields: Any) -> Got:
        """Ask once, with OpenAI's client that is told not to ask again."""
        got = Got(uuid.uuid4().hex)
        headers = {"X-Request-ID": got.identifier, "Authorization": f"Bearer {key or self.stack.key}"}
        options: Any = {"model": model, "messages": HELLO, "extra_headers": headers, **fields}
        started = time.monotonic()
        try:
            if stream:
                for chunk in self.client.chat.completions.create(stream=True, **options):
                    got.add(chunk)
            else:
                got.add(self.client.chat.completions.create(**options))
        except (openai.APIError, httpx2.HTTPError) as error:
            got.error = error
        got.seconds = time.monotonic() - started
        return got

    def ask_raw(self, model: str, stream: bool = False, **fields: Any) -> tuple[Answer, dict[str, Any]]:
        """The answer as it came over a connection of its own, up to its end, and what the log says of it. OpenAI's
        client leaves streams at their `[DONE]`."""
        identifier = uuid.uuid4().hex
        answer = self.route.post({"model": model, "messages": HELLO, "stream": stream, **fields}, identifier)
        return answer, self.stack.logged(identifier)

    def logged(self, got: Got) -> dict[str, Any]:
        return self.stack.logged(got.identifier)

    def used(self, key: str) -> dict[str, float]:
        """What a caller has used by now, of each limit by what it limits."""
        limits = self.stack.limits_of(key)
        assert limits is not None
        return {each["name"]: each["used"] for each in limits}

    def at_rest(self) -> bool:
        """Whether no backend has anything to do."""
        return not any(each.open for each in self.backends.values())


def until_closed(backend: Upstream, since: float) -> float:
    """Wait until the gateway has left a backend's last request; the seconds from `since` on."""
    until(lambda: backend.requests[-1].left_at is not None, "the end of the backend's request")
    seconds = cast(float, backend.requests[-1].left_at) - since
    print(f"the backend's connection was closed after {seconds * 1000:.0f} ms")
    return seconds


def usual(name: str, backend: Upstream) -> str:
    """Lines of the table `[backends]`: the same server as one with much patience, and as one with little."""
    common = f'provider = "openai", base_url = "{backend.url}"'
    return f"{name} = {{ {common}, {TIMEOUTS} }}\n{name}-hurried = {{ {common}, {HURRIED} }}"


@contextlib.contextmanager
def fleet(
    own_stack: Callable[..., Any],
    way: str,
    models: str,
    *,
    names: str = "abc",
    plugins: str = "",
    backends: Callable[[str, Upstream], str] | None = None,
    **tables: Any,
) -> Iterator[Fleet]:
    """Backends called `a`, `b`, …, which call their model `a-large`, …, and a gateway with these models.

    `backends` gives the line of one, where it is not the usual one.
    """
    with contextlib.ExitStack() as running:
        found = {name: running.enter_context(upstream(f"{name}-large", 11 * at)) for at, name in enumerate(names, 1)}
        lines = "\n".join((backends or usual)(name, each) for name, each in found.items())
        stack = running.enter_context(own_stack(way=way, backends=lines, models=models, plugins=plugins, **tables))
        if stack.delivery == "offload":
            stack.warm_up()
        made = Fleet(way, stack, found)
        with made.client:
            yield made
