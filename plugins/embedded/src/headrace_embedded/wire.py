"""From llama.cpp's pieces to OpenAI's events and answers.

llama.cpp speaks almost OpenAI's format. What differs: a field `timings`, a usage for each result instead of one for
the request, the usage of completions inside their last event, and the log probabilities of completions.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .requests import ChatRequest, CompletionRequest

MARKERS = (b'"usage":', b'"timings":')
"""What only a piece has that needs a change; inside a text the quotes would be escaped."""
HEAD = ("id", "object", "created", "model", "system_fingerprint")

Piece = dict[str, Any]


class Reader:
    """Takes the pieces of one answer, gives them back as OpenAI's, and keeps count of what was used."""

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self._choices_per_text = request.n or 1
        self._expected = request.texts * self._choices_per_text
        self._alternatives = request.alternatives
        self._usages: list[Piece] = []
        self._head: Piece = {}
        self._offsets: dict[int, int] = {}

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its end. llama.cpp says so by giving its usage."""
        return len(self._usages) == self._expected

    def event(self, piece: bytes) -> bytes | None:
        """The piece as a client gets it, untouched where nothing needs a change; None: not for the client."""
        if self._alternatives is None and not any(marker in piece for marker in MARKERS):
            return piece
        cleaned = self.piece(piece)
        return None if cleaned is None else msgspec.json.encode(cleaned)

    def piece(self, piece: bytes) -> Piece | None:
        """The same, decoded."""
        found: Piece = msgspec.json.decode(piece)
        found.pop("timings", None)
        usage = found.pop("usage", None)
        if usage is not None:
            self._usages.append(usage)
            self._head = {name: found[name] for name in HEAD if name in found}
        if self._alternatives is not None:
            for choice in found["choices"]:
                self._log_probabilities(choice)
        return found if found["choices"] else None

    def usage_event(self) -> bytes:
        """The last event of a stream whose client asked for `stream_options.include_usage`."""
        return msgspec.json.encode({**self._head, "choices": [], "usage": self.usage})

    @property
    def usage(self) -> Piece:
        """The whole request's: every choice's tokens, but each prompt only once."""
        prompt = sum(each["prompt_tokens"] for each in self._usages) // self._choices_per_text
        cached = sum(each["prompt_tokens_details"]["cached_tokens"] for each in self._usages) // self._choices_per_text
        completion = sum(each["completion_tokens"] for each in self._usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _log_probabilities(self, choice: Piece) -> None:
        found = choice.get("logprobs")
        if not found:
            return
        for token in found["content"]:
            token.pop("id", None)
            token["top_logprobs"] = [_without_id(each) for each in token["top_logprobs"][: self._alternatives]]
        if "text" in choice:
            choice["logprobs"] = self._as_completion(choice["index"], found["content"])

    def _as_completion(self, index: int, tokens: list[Piece]) -> Piece:
        """The older shape (https://platform.openai.com/docs/api-reference/completions/object)."""
        offsets = []
        for token in tokens:
            offset = self._offsets.get(index, 0)
            offsets.append(offset)
            self._offsets[index] = offset + len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{each["token"]: each["logprob"] for each in token["top_logprobs"]} for token in tokens],
            "text_offset": offsets,
        }


def _without_id(token: Piece) -> Piece:
    return {name: value for name, value in token.items() if name != "id"}


class Whole:
    """Puts the pieces of a stream together again, for a client that asked for no stream."""

    def __init__(self, request: ChatRequest | CompletionRequest) -> None:
        self.reader = Reader(request)
        self._chat = isinstance(request, ChatRequest)
        self._head: Piece = {}
        self._choices: dict[int, Piece] = {}

    def add(self, piece: bytes) -> None:
        found = self.reader.piece(piece)
        if found is None:
            return
        self._head = self._head or {name: found[name] for name in HEAD if name in found}
        for part in found["choices"]:
            choice = self._choices.setdefault(part["index"], self._new(part["index"]))
            if part["finish_reason"] is not None:
                choice["finish_reason"] = part["finish_reason"]
            if part.get("logprobs"):
                choice["logprobs"] = _joined(choice["logprobs"], part["logprobs"])
            if self._chat:
                _add_delta(choice["message"], part["delta"])
            else:
                choice["text"] += part["text"]

    def answer(self) -> bytes:
        head = {**self._head, "object": "chat.completion" if self._chat else "text_completion"}
        choices = [self._choices[index] for index in sorted(self._choices)]
        return msgspec.json.encode({**head, "choices": choices, "usage": self.reader.usage})

    def _new(self, index: int) -> Piece:
        body: Piece = {"message": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
        return {"index": index, **body, "logprobs": None, "finish_reason": None}


def _add_delta(message: Piece, delta: Piece) -> None:
    """Add what one piece brings to a message: texts grow, tool calls are told apart by their index."""
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value:
                _add_call(message.setdefault("tool_calls", []), call)
        elif name != "role" and value is not None:
            message[name] = (message.get(name) or "") + value


def _add_call(calls: list[Piece], part: Piece) -> None:
    while len(calls) <= part["index"]:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[part["index"]], part.get("function", {})
    call["id"] = part.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _joined(before: Piece | None, more: Piece) -> Piece:
    if before is None:
        return more
    return {name: before[name] + value for name, value in more.items()}
