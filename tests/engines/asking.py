"""A caller with OpenAI's own client, what it asks, and what it gets."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import httpx2
import openai

from ..processes import until
from ..stack import Stack

PARTS = (
    "mil",
    "ler",
    "ri",
    "ver",
    "sto",
    "ne",
    "gra",
    "in",
    "flo",
    "ur",
    "whe",
    "el",
    "wa",
    "ter",
    "co",
    "rn",
    "bri",
    "dge",
)
STAND_INS = ("fake", "raw")
"""Backends of every stack of the tests that are no servers of ours."""
HELLO = [{"role": "user", "content": "What does the wheel do?"}]
ENDLESS: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True, "temperature": 0}
"""An answer that lasts until somebody ends it, or for ten seconds at least."""


class Words:
    """Words that look random, the same ones for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def __call__(self, count: int) -> str:
        return " ".join(self._word() for _ in range(count))

    def _word(self) -> str:
        return "".join(self._random.choices(PARTS, k=self._random.randint(1, 3)))


class Asked(threading.Thread):
    """One request of a caller, from when it is made."""

    def __init__(self, client: openai.OpenAI, fields: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._client, self._fields = client, fields
        self.identifier = uuid.uuid4().hex
        self.chunks: list[Any] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        create: Any = self._client.completions if "prompt" in self._fields else self._client.chat.completions
        try:
            said = create.create(**self._fields, extra_headers={"X-Request-ID": self.identifier})
            for chunk in said if self._fields.get("stream") else (said,):
                self.chunks.append(chunk)
        except (openai.APIError, httpx2.HTTPError) as error:
            self.error = error

    def wait(self, seconds: float = 120) -> Asked:
        """Until it is over. Returns itself."""
        self.join(seconds)
        assert not self.is_alive(), f"no end within {seconds:g} s"
        return self

    def begun(self, chunks: int) -> Asked:
        """Wait until so much of its stream has come. Returns itself."""
        until(lambda: len(self.chunks) >= chunks or not self.is_alive(), "the stream's begin", 60)
        assert len(self.chunks) >= chunks, self.error
        return self

    @property
    def text(self) -> str:
        return "".join(_said(choice) for chunk in self.chunks for choice in chunk.choices)

    @property
    def finish(self) -> list[str]:
        """Every reason that was given for its end."""
        reasons = (choice.finish_reason for chunk in self.chunks for choice in chunk.choices)
        return [reason for reason in reasons if reason]

    @property
    def usage(self) -> Any:
        return self.chunks[-1].usage

    @property
    def code(self) -> Any:
        """Of its error."""
        return getattr(self.error, "code", None)

    @property
    def cached(self) -> int:
        """Tokens of its prompt that the engine had in its cache."""
        details = self.usage.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


def _said(choice: Any) -> str:
    part = getattr(choice, "delta", None) or getattr(choice, "message", None)
    return str((part.content if part is not None else choice.text) or "")


class Caller:
    """Someone who asks a gateway through nginx."""

    def __init__(self, stack: Stack, client: openai.OpenAI) -> None:
        self.stack, self.client = stack, client
        self.route = stack.route("nginx")

    def ask(self, model: str, key: str | None = None, **fields: Any) -> Asked:
        """Begin to ask. Fields that OpenAI's client does not know stand in `extra_body`."""
        prompt = {} if "messages" in fields or "prompt" in fields else {"messages": HELLO}
        client = self.client.with_options(api_key=key) if key else self.client
        return Asked(client, {"model": model, "temperature": 0, **prompt, **fields})

    def target(self, asked: Asked) -> str:
        """Who has answered."""
        return str(self.logged(asked)["target"])

    def logged(self, asked: Asked) -> dict[str, Any]:
        return self.stack.logged(asked.identifier)

    def used(self, key: str) -> dict[str, int]:
        """What a caller has used of each of its limits, by what is limited."""
        return {each["name"]: each["used"] for each in self.stack.limits_of(key) or ()}

    def conditions(self) -> dict[str, str]:
        """How each server is, as the gateway knows it."""
        with self.route.client() as client:
            told = client.get("/v1/health/inference").json()
        targets = [each for model in told["models"].values() for each in model["targets"]]
        return {each["name"]: each["condition"] for each in targets if each["name"] not in STAND_INS}


class Resting(Protocol):
    """An engine that tells whether it has nothing to do."""

    def at_rest(self) -> bool: ...


@contextlib.contextmanager
def asking(caller: Caller, model: str, path: str, stream: bool, **fields: Any) -> Iterator[socket.socket]:
    """A request over a connection of its own. At the end the client leaves."""
    prompt = {"prompt": "\n"} if path == "/v1/completions" else {"messages": HELLO}
    with caller.route.connect() as connection:
        body = {"model": model, "stream": stream, **prompt, **ENDLESS, **fields}
        connection.sendall(caller.route.request(body, path=path))
        yield connection


def idle_after(server: Resting, since: float) -> float:
    """Wait until a server has nothing to do; the seconds from `since` (`time.monotonic()`) on."""
    until(server.at_rest, "the engine's rest")
    seconds = time.monotonic() - since
    print(f"the engine was at rest after {seconds * 1000:.0f} ms")
    return seconds


@contextlib.contextmanager
def calling(stack: Stack) -> Iterator[Caller]:
    """A caller of a gateway that delivers as it is told to."""
    if stack.delivery == "offload":
        stack.warm_up()
    with stack.route("nginx").sdk() as client:
        yield Caller(stack, client)
