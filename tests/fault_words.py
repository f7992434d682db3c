"""What a backend says, word for word as vLLM 0.32 puts it: answers, whole and in chunks, and errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT = (
    "The river brings the water to the wheel, and the wheel turns the mill. Größe, Gefälle: both matter, 水 is heavy. "
    'The river brings the water back to the sea, "as ever", and the wheel turns the mill again.'
)
"""Some of its words come more than once, and some have more bytes than letters."""
ARGUMENTS = '{"city": "Zürich", "days": [1, 2, 3]}'
"""Of the function that a backend calls."""


def tokens(text: str) -> list[str]:
    """A word with the space before it is a token."""
    return re.findall(r"\s*\S+", text)


def encoded(said: Any) -> bytes:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def event(said: Any) -> bytes:
    """An event of a stream: JSON, or a text as it is."""
    return b"data: " + (said.encode() if isinstance(said, str) else encoded(said)) + b"\n\n"


def error(message: str, kind: str | None, code: int | str | None, param: str | None = None, **more: Any) -> Any:
    """https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/openai/engine/protocol.py: `ErrorResponse`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


SHUT_DOWN = error(
    "EngineCore encountered an issue. See stack trace (above) for the root cause.", *("InternalServerError", 500)
)
"""What vLLM puts at the end of the streams that its own end cuts short, before `[DONE]`."""
TOO_LONG = {
    "vllm": error(
        "This model's maximum context length is 1024 tokens. However, you requested 16 output tokens and your prompt "
        "contains at least 1009 input tokens, for a total of at least 1025 tokens. Please reduce the length of the "
        "input prompt or the number of requested output tokens.",
        *("BadRequestError", 400, "input_tokens"),
    ),
    "openai": error(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. "
        "Please reduce the length of the messages.",
        *("invalid_request_error", "context_length_exceeded", "messages"),
    ),
    "llama.cpp": error(
        "the request exceeds the available context size, try increasing it",
        *("exceed_context_size_error", 400),
        n_prompt_tokens=9001,
        n_ctx=8192,
    ),
}
"""A prompt that does not fit, in the words of those who say so; with status 400."""
FILTERED = {
    "openai": error(
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        *("invalid_request_error", "content_filter", "prompt"),
    ),
    "azure": error(
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        *(None, "content_filter", "prompt"),
        status=400,
        innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    ),
}
"""A prompt that is refused for what it says; with status 400."""
NO_PREFILL = error("Assistant response prefill is not supported by this model.", *("BadRequestError", 400))
CANNOT_SET_BOTH = error(
    "Cannot set both `continue_final_message` and `add_generation_prompt` to True.", *("BadRequestError", 400)
)


class Refused(Exception):
    """A request that is answered 400, with `said`."""

    def __init__(self, said: Any) -> None:
        self.said = said


def prefill(asked: Mapping[str, Any], text: str) -> str:
    """The beginning of the answer that is to be continued. Raises Refused."""
    if not asked.get("continue_final_message"):
        return ""
    if asked.get("add_generation_prompt", True):
        raise Refused(CANNOT_SET_BOTH)
    last = asked["messages"][-1]
    written = str(last["content"]) if last["role"] == "assistant" else ""
    if not text.startswith(written):
        raise Refused(error(f"That is not how I began: {written!r}", *("BadRequestError", 400)))
    return written


@dataclass
class Said:
    """The answer to one request."""

    model: str
    deltas: list[dict[str, Any]]
    finish: str
    prompt_tokens: int
    choices: int = 1
    with_usage: bool = False
    count: int = 0
    """Tokens said so far."""
    identifier: str = field(default_factory=lambda: f"chatcmpl-{time.monotonic_ns():032x}")

    @classmethod
    def to(cls, asked: Mapping[str, Any], model: str, prompt_tokens: int, finish: str, text: str) -> Said:
        """What is answered to a request: the rest of the text, or a function's call if there are tools."""
        written = prefill(asked, text)
        deltas = [{"content": each} for each in tokens(text[len(written) :])]
        if asked.get("tools"):
            deltas, finish = tool_call(), "tool_calls"
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or len(deltas)
        finish = "length" if limit < len(deltas) else finish
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        prompt_tokens += len(tokens(written))
        return cls(model, deltas[:limit], finish, prompt_tokens, asked.get("n") or 1, with_usage)

    def _made(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.identifier, "object": kind, "created": 1763700000, "model": self.model, "choices": choices}

    def _chunks(self, delta: dict[str, Any], finish: str | None = None) -> Iterator[dict[str, Any]]:
        for index in range(self.choices):
            choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None, "token_ids": None} if finish else {}
            yield self._made("chat.completion.chunk", [choice])

    def events(self) -> Iterator[dict[str, Any]]:
        """The role, and the answer's pieces."""
        yield from self._chunks({"role": "assistant", "content": ""})
        for delta in self.deltas:
            self.count += self.choices
            yield from self._chunks(delta)

    def last(self) -> Iterator[dict[str, Any]]:
        """Why it ends, and what it took."""
        yield from self._chunks({} if self.finish == "tool_calls" else {"content": ""}, self.finish)
        if self.with_usage:
            yield {**self._made("chat.completion.chunk", []), "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.count
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": total, "completion_tokens": self.count}

    def completion(self) -> dict[str, Any]:
        """All of it at once."""
        self.count = len(self.deltas) * self.choices
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": []}
        if "tool_calls" in self.deltas[0]:
            message["tool_calls"] = [_function(ARGUMENTS)]
        else:
            message["content"] = "".join(each["content"] for each in self.deltas)
        reason = {"logprobs": None, "finish_reason": self.finish, "stop_reason": None, "token_ids": None}
        choices = [{"index": index, "message": message, **reason} for index in range(self.choices)]
        usage = {**self.usage(), "prompt_tokens_details": None}
        return {**self._made("chat.completion", choices), "service_tier": None, "usage": usage}


def _function(arguments: str, **more: Any) -> dict[str, Any]:
    called = {"name": "weather", "arguments": arguments}
    return {"id": "chatcmpl-tool-1", "type": "function", **more, "function": called}


def tool_call() -> list[dict[str, Any]]:
    """The pieces of a function's call."""
    rest = [{"index": 0, "function": {"arguments": each}} for each in tokens(ARGUMENTS)]
    return [{"tool_calls": [each]} for each in (_function("", index=0), *rest)]
