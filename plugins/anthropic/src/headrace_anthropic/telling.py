"""A chat's answer as a Messages answer: what whole ones and streams have in common, and the whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headrace import chat
from headrace.errors import UpstreamError
from headrace.weighing import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from headrace.exchange import Exchange

REQUEST_ID = b"request-id"
"""Where Anthropic's clients look for a request's id."""
REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""Why an answer ended: in a chat, and here. Whatever else an engine says is an `end_turn`."""
_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Any]).decode


def name(exchange: Exchange) -> None:
    """Have the answer's head name the request as Anthropic's clients read it."""
    exchange.response_headers.append((REQUEST_ID, exchange.id.encode()))


def reason(finish: str | None, *, calls: bool, refused: bool, matched: object) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`.

    Args:
        calls: whether the answer has tool calls: not every engine says so by its finish reason.
        refused: whether it has a refusal.
        matched: the stop text before which the answer ended, where the engine tells it.
    """
    if refused:
        return "refusal", None
    if finish == "stop" and calls:
        return "tool_use", None
    if finish == "stop" and isinstance(matched, str):
        return "stop_sequence", matched
    return REASONS.get(finish or "stop", "end_turn"), None


def usage(counted: chat.Usage | None, exchange: Exchange, answer_tokens: int) -> dict[str, Any]:
    """The token counts; `answer_tokens` stands in for what the backend has not counted."""
    if counted is None:
        guess = exchange.estimate(answer_tokens)
        return _counts(guess.prompt_tokens, 0, guess.completion_tokens) | {"estimated": True}
    told = _counts(counted.prompt_tokens, counted.cached, counted.completion_tokens)
    if counted.thought:
        told["output_tokens_details"] = {"thinking_tokens": counted.thought}
    return told


def _counts(prompt: int, cached: int, answer: int) -> dict[str, Any]:
    """Anthropic counts what was in the cache apart."""
    return {
        "input_tokens": max(0, prompt - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": answer,
    }


def arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a tool call; None if they are no JSON object."""
    if not text.strip():
        return {}
    try:
        return _object(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


def tool_id(given: object, exchange: Exchange, number: int) -> str:
    """The id of a tool call, made up if the engine gives none."""
    return given if isinstance(given, str) and given else f"toolu_{exchange.id}_{number}"


def message(exchange: Exchange, model: str) -> dict[str, Any]:
    """An answer of which nothing is known yet."""
    assert exchange.peek is not None
    return {
        "id": f"msg_{exchange.id}",
        "type": "message",
        "role": "assistant",
        "model": model or exchange.peek.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def whole(completion: chat.Completion, exchange: Exchange) -> bytes:
    """The body of a whole answer.

    Raises:
        UpstreamError: it has no choice, or a tool call whose arguments are no JSON object.
    """
    if not completion.choices:
        raise UpstreamError("The backend's answer has no choice.")
    name(exchange)
    choice = completion.choices[0]
    said = choice.message
    stop, sequence = reason(
        choice.finish_reason,
        calls=bool(said.tool_calls),
        refused=bool(said.refusal),
        matched=getattr(choice, "stop_reason", None),
    )
    told = message(exchange, completion.model)
    told["content"] = _blocks(said, exchange, cut=choice.finish_reason == "length")
    told["stop_reason"], told["stop_sequence"] = stop, sequence
    length = len(said.content or "") + len(said.thought)
    told["usage"] = usage(completion.usage, exchange, length // BYTES_PER_TOKEN)
    return _encode(told)


def _blocks(said: chat.Answer, exchange: Exchange, *, cut: bool) -> list[dict[str, Any]]:
    """What was thought, said and called. A call in whose midst the answer was cut is left out: nobody shall make it."""
    found: list[dict[str, Any]] = []
    if said.thought:
        found.append({"type": "thinking", "thinking": said.thought, "signature": ""})
    found += [{"type": "text", "text": text} for text in (said.content, said.refusal) if text]
    for number, call in enumerate(said.tool_calls or ()):
        given = arguments(call.function.arguments)
        if given is None and not cut:
            raise bad_arguments(call.function.name)
        if given is not None:
            identifier = tool_id(call.id, exchange, number)
            found.append({"type": "tool_use", "id": identifier, "name": call.function.name, "input": given})
    return found


def bad_arguments(tool: str) -> UpstreamError:
    return UpstreamError(f"The model called the tool {tool!r} with arguments that are no JSON object.")
