"""What `provider = "parrot"` means: a backend without a network."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from headrace.config import BackendConfig
from headrace.exchange import Attempt, Reply, Target, UpstreamRequest

URL = "parrot://cage"


class Parrot:
    """Repeats the last message."""

    name = "parrot"
    endpoints = frozenset({"chat"})
    native = frozenset[str]()

    def target(self, name: str, config: BackendConfig) -> Target:
        if config.base_url:
            raise ValueError("base_url: a parrot has none")
        return Target(name=name, provider=self.name, base_url=URL)

    def build(self, attempt: Attempt) -> UpstreamRequest:
        return UpstreamRequest(url=URL, headers={}, body=attempt.exchange.body)

    async def send(self, attempt: Attempt) -> Reply:
        assert attempt.request is not None
        fields = json.loads(attempt.request.body)
        words = str(fields["messages"][-1]["content"]).split(" ")
        if fields.get("stream"):
            return Reply(200, [(b"content-type", b"text/event-stream")], stream=speak(words))
        answer = {
            "object": "chat.completion",
            "choices": [choice(message={"role": "assistant", "content": " ".join(words)})],
        }
        return Reply(200, [(b"content-type", b"application/json")], content=json.dumps(answer).encode())

    async def models(self, target: Target) -> Sequence[str]:
        return ["polly"]


async def speak(words: list[str]) -> AsyncIterator[bytes]:
    """One event a word."""
    for word in words:
        yield event({"choices": [choice(delta={"content": word})]})
    yield event({"choices": [{**choice(delta={}), "finish_reason": "stop"}]})
    yield b"data: [DONE]\n\n"


def choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": None, **fields}


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
