"""Answers of `/generate` and `/generate_stream` as OpenAI's completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import msgspec

from headrace import chat
from headrace.delivery import UNFINISHED
from headrace.errors import UpstreamError
from headrace.streaming import EventSplitter
from headrace.vetting import FAILED, MALFORMED

from . import wire

_encode = msgspec.json.Encoder().encode
WORDS = 500
"""Bytes of what TGI says that are kept for the log."""


class Choice(msgspec.Struct):
    text: str
    index: int = 0
    logprobs: Any = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """An answer, or an event of a stream; without `usage` where there is none."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    object: str
    usage: chat.Usage | None = None


class Answering:
    """Translates one answer.

    Args:
        id: the request's.
        model: what the client calls it.
        stops: texts before which the answer ends. TGI ends after them.
        prefix: what stands before the answer: the prompt, if it is to be repeated.
        logprobs: whether they are asked for.
        usage: whether a stream tells its token counts.
    """

    def __init__(
        self, id: str, model: str, stops: Sequence[str], *, prefix: str = "", logprobs: bool = False, usage: bool = True
    ) -> None:
        self._id, self._model, self._stops, self._prefix = f"cmpl-{id}", model, tuple(stops), prefix
        self._logprobs, self._usage = logprobs, usage
        self._created = int(time.time())
        self._held, self._offset = "", len(prefix)
        self.finished = False
        """Whether the last event has been seen."""

    def whole(self, content: bytes, prompt_tokens: int | None) -> bytes:
        """The body of a whole answer. Raises UpstreamError."""
        try:
            answer = wire.whole(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(content) from error
        details = answer.details
        if details is None:
            raise UpstreamError("The backend's answer has no details: is it text-generation-inference?")
        text = answer.generated_text
        if details.finish_reason == "stop_sequence":
            text = self._without_stop(text)
        logprobs = self._probabilities(details.tokens, details.top_tokens)
        choice = Choice(self._prefix + text, 0, logprobs, wire.FINISH[details.finish_reason])
        prompt = len(details.prefill) if prompt_tokens is None else prompt_tokens
        return _encode(self._completion([choice], _usage(prompt, details.generated_tokens)))

    def _completion(self, choices: list[Choice], usage: chat.Usage | None = None) -> Completion:
        return Completion(self._id, self._created, self._model, choices, "text_completion", usage)

    def feed(self, data: bytes) -> bytes:
        """The events that one of TGI's makes; empty if it says nothing. Raises UpstreamError."""
        try:
            said = wire.said(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _unreadable(data) from error
        if said.error is not None or said.token is None:
            words = data[:WORDS].decode("utf-8", "replace")
            raise UpstreamError(FAILED, detail=f"an error in the stream: {said.error_type}", evidence=words)
        token = said.token
        self._held += "" if token.special else token.text
        details = said.details
        text = self._released() if details is None else self._last(details)
        logprobs = None if token.special else self._probabilities([token], [said.top_tokens])
        events = self._event(text, logprobs) if text or logprobs else b""
        return events if details is None else events + self._end(details)

    def _event(self, text: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        text, self._prefix = self._prefix + text, ""
        return b"data: " + _encode(self._completion([Choice(text, 0, logprobs, finish)])) + b"\n\n"

    def _end(self, details: wire.Details) -> bytes:
        self.finished = True
        last = self._event("", None, wire.FINISH[details.finish_reason])
        usage = b""
        if self._usage:
            counted = _usage(details.input_length or 0, details.generated_tokens)
            usage = b"data: " + _encode(self._completion([], counted)) + b"\n\n"
        return last + usage + chat.DONE

    def _released(self) -> str:
        """What is held and cannot be the beginning of a stop any more."""
        text = self._held
        most = max((len(stop) for stop in self._stops), default=0)
        for size in range(min(most, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

    def _last(self, details: wire.Details) -> str:
        text, self._held = self._held, ""
        return self._without_stop(text) if details.finish_reason == "stop_sequence" else text

    def _without_stop(self, text: str) -> str:
        found = [len(stop) for stop in self._stops if text.endswith(stop)]
        return text[: -max(found)] if found else text

    def _probabilities(self, tokens: Sequence[wire.Token], top: Sequence[Sequence[wire.Token]]) -> Any:
        """`logprobs` of a choice: https://platform.openai.com/docs/api-reference/completions/object."""
        if not self._logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{each.text: each.logprob for each in others} for others in top] or None,
            "text_offset": offsets,
        }


async def events(stream: AsyncIterator[bytes], answering: Answering) -> AsyncGenerator[bytes, None]:
    """The events of a completion. Raises UpstreamError: the stream broke off, or told of an error."""
    splitter = EventSplitter()
    try:
        async for chunk in stream:
            for event in splitter.feed(chunk):
                if not answering.finished and (out := answering.feed(event.data)):
                    yield out
        if not answering.finished:
            raise UpstreamError(UNFINISHED)
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _usage(prompt: int, answer: int) -> chat.Usage:
    return chat.Usage(prompt, answer, prompt + answer)


def _unreadable(data: bytes) -> UpstreamError:
    return UpstreamError(MALFORMED, detail="not TGI's", evidence=data[:WORDS].decode("utf-8", "replace"))
