"""From Ollama's answers to OpenAI's, whole or line by line."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec

from headrace import chat
from headrace.errors import UpstreamError
from headrace.vetting import FAILED, MALFORMED

from .wire import Answer, Logprob, SaidCall, Token, count

_encode = msgspec.json.Encoder().encode
_answer = msgspec.json.Decoder(Answer).decode
WORDS = 500
"""Characters of what Ollama says that are kept for the log."""
NO_ANSWER = {"load": "loaded", "unload": "unloaded"}
"""Reasons for an end without an answer."""


class Chunk(msgspec.Struct, omit_defaults=True):
    """One event of a stream; without `usage` where there is none, so that whoever looks for it need not read all."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: chat.Usage | None = None


class TextChoice(msgspec.Struct):
    """A choice of a completion."""

    text: str
    index: int = 0
    logprobs: Any = None
    finish_reason: str | None = None


class Whole(msgspec.Struct):
    """A whole answer."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: chat.Usage


def read(line: bytes) -> Answer:
    """What Ollama says. Raises UpstreamError: nothing that can be read, or an error."""
    try:
        answer = _answer(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        words = line[:WORDS].decode("utf-8", "replace")
        raise UpstreamError(MALFORMED, detail=f"not Ollama's: {type(error).__name__}", evidence=words) from error
    if answer.error:
        raise UpstreamError(FAILED, detail="an error in the stream", evidence=str(answer.error)[:WORDS])
    if answer.done and answer.done_reason in NO_ANSWER:
        raise UpstreamError(f"The backend {NO_ANSWER[answer.done_reason]} the model, and did not answer.")
    return answer


class _Translation:
    """What chats and completions have in common.

    Args:
        id: the request's: ids of answers and of tool calls are made of it.
        usage: whether a stream ends with its token counts.

    Attributes:
        finished: whether the last line has been seen.
    """

    prefix = kind = whole_kind = ""

    def __init__(self, id: str, *, usage: bool = True) -> None:
        self._id, self._usage = f"{self.prefix}-{id}", usage
        self._created = int(time.time())
        self.finished = False

    def feed(self, line: bytes) -> bytes:
        """The events that one line makes; empty if it says nothing. Raises UpstreamError."""
        if self.finished or not line.strip():
            return b""
        answer = read(line)
        events = self._said(answer)
        if not answer.done:
            return events
        self.finished = True
        usage = self._event(answer, [], usage_of(answer)) if self._usage else b""
        return events + usage + chat.DONE

    def _said(self, answer: Answer) -> bytes:
        raise NotImplementedError

    def _event(self, answer: Answer, choices: list[Any], usage: chat.Usage | None = None) -> bytes:
        return b"data: " + _encode(Chunk(self._id, self.kind, self._created, answer.model, choices, usage)) + b"\n\n"

    def whole(self, content: bytes) -> bytes:
        """The body of a whole answer. Raises UpstreamError."""
        answer = read(content)
        if not answer.done:
            raise UpstreamError("The backend's answer is incomplete.")
        choice = self._choice(answer)
        return _encode(Whole(self._id, self.whole_kind, self._created, answer.model, [choice], usage_of(answer)))

    def _choice(self, answer: Answer) -> Any:
        raise NotImplementedError


class ChatTranslation(_Translation):
    """Answers of `/api/chat`."""

    prefix, kind, whole_kind = "chatcmpl", "chat.completion.chunk", "chat.completion"

    def __init__(self, id: str, *, usage: bool = True) -> None:
        super().__init__(id, usage=usage)
        self._calls_id = hashlib.blake2s(id.encode(), digest_size=9).hexdigest()
        self._ids: set[str] = set()
        self._calls = 0
        self._begun = False

    def _said(self, answer: Answer) -> bytes:
        said = answer.message
        delta = chat.Delta()
        if said is not None:
            delta.content, delta.reasoning_content = said.content or None, said.thinking or None
            if said.tool_calls:
                delta.tool_calls = [self._call_delta(call) for call in said.tool_calls]
        finish = finish_reason(answer, self._calls) if answer.done else None
        logprobs = _chat_logprobs(answer.logprobs)
        if not (finish or logprobs or delta.content or delta.reasoning_content or delta.tool_calls):
            return b""
        if not self._begun:
            self._begun = True
            delta.role = "assistant"
        return self._event(answer, [chat.ChunkChoice(delta, 0, finish, logprobs)])

    def _call_delta(self, call: SaidCall) -> chat.ToolCallDelta:
        index, id = self._calls, self._call_id(call)
        function = chat.FunctionDelta(call.function.name, _text(call.function.arguments))
        return chat.ToolCallDelta(index, id, "function", function)

    def _call_id(self, call: SaidCall) -> str:
        """Ollama's own id if it gives one that there was not yet, else one made of the request's."""
        id = call.id if call.id and call.id not in self._ids else f"call_{self._calls_id}_{self._calls}"
        self._ids.add(id)
        self._calls += 1
        return id

    def _choice(self, answer: Answer) -> chat.Choice:
        said = answer.message
        if said is None:
            raise UpstreamError("The backend's answer has no message.")
        calls = [
            chat.ToolCall(self._call_id(call), chat.FunctionCall(call.function.name, _text(call.function.arguments)))
            for call in said.tool_calls or ()
        ]
        message = _Message(
            "assistant",
            said.content if said.content or not calls else None,
            calls or msgspec.UNSET,
            said.thinking or msgspec.UNSET,
        )
        return chat.Choice(message, 0, finish_reason(answer, len(calls)), _chat_logprobs(answer.logprobs))  # type: ignore[arg-type]


class _Message(msgspec.Struct):
    """Of a whole answer: with `content` even where it is null, as OpenAI gives it."""

    role: str
    content: str | None
    tool_calls: list[chat.ToolCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class CompletionTranslation(_Translation):
    """Answers of `/api/generate`."""

    prefix, kind, whole_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, id: str, *, usage: bool = True) -> None:
        super().__init__(id, usage=usage)
        self._offset = 0

    def _said(self, answer: Answer) -> bytes:
        choice = self._choice(answer)
        if not (choice.text or choice.finish_reason or choice.logprobs):
            return b""
        return self._event(answer, [choice])

    def _choice(self, answer: Answer) -> TextChoice:
        text = (answer.thinking or "") + (answer.response or "")
        finish = finish_reason(answer, 0) if answer.done else None
        return TextChoice(text, 0, self._logprobs(answer.logprobs), finish)

    def _logprobs(self, tokens: list[Logprob] | None) -> Any:
        """The older shape (https://platform.openai.com/docs/api-reference/completions/object)."""
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{each.token: each.logprob for each in token.top_logprobs or ()} for token in tokens],
            "text_offset": offsets,
        }


def finish_reason(answer: Answer, calls: int) -> str:
    """OpenAI's name for Ollama's `done_reason`, which older versions leave out."""
    if answer.done_reason == "length":
        return "length"
    return "tool_calls" if calls else answer.done_reason or "stop"


def usage_of(answer: Answer) -> chat.Usage:
    """Ollama leaves out what is 0."""
    prompt, completion = count(answer.prompt_eval_count) or 0, count(answer.eval_count) or 0
    cached = count(answer.prompt_eval_cached_count)
    details = None if cached is None else chat.PromptDetails(cached)
    return chat.Usage(prompt, completion, prompt + completion, details)


def _text(arguments: msgspec.Raw) -> str:
    """As JSON in a text; some models give them as a text already."""
    text = bytes(arguments).decode()
    if text.startswith('"'):
        return msgspec.json.decode(text, type=str)
    return "{}" if text == "null" else text


def _chat_logprobs(tokens: list[Logprob] | None) -> Any:
    if not tokens:
        return None
    content = [
        {**_token(token), "top_logprobs": [_token(each) for each in token.top_logprobs or ()]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: Token) -> dict[str, Any]:
    known = list(token.token.encode()) if token.bytes is None else token.bytes
    return {"token": token.token, "logprob": token.logprob, "bytes": known}
