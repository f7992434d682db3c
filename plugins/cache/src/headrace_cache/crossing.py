"""A whole answer as a stream, and a stream as a whole answer: of chats and completions, in OpenAI's form.

What both forms know is carried over, and nothing is left out: an answer that has anything else in it stays what it is.
See https://platform.openai.com/docs/api-reference/chat and what vLLM and llama.cpp add to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from headrace.dialects import asks_for_usage
from headrace.exchange import Exchange
from headrace.streaming import EventSplitter

from .entry import Entry, Kind

ENDPOINTS = frozenset(("chat", "completions"))
"""Those whose answers can be had in either form."""
OBJECTS = {"chat.completion": "chat.completion.chunk", "text_completion": "text_completion"}
"""What a whole answer calls itself, and what a piece of a stream does."""
NAMES = ("id", "created", "model")
NOTES = ("service_tier", "system_fingerprint", "timings")
"""What a backend tells beside the answer."""
TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
ENDS = ("finish_reason", "stop_reason")
PADDING = "obfuscation"
_NOTHING: tuple[object, ...] = (None, "", [], {})

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class _Unlike(ValueError):
    """There is something in it that the other form does not know."""


_FAULTS = (ValueError, TypeError, RecursionError, msgspec.MsgspecError)
"""What an answer brings about that is not as it should be; backends write what they like."""


def as_stream(body: bytes, *, usage: bool) -> bytes | None:
    """A whole answer as the events of a stream, one with everything and one with the end of each choice.

    Args:
        body: as a client got it.
        usage: whether the stream is to end with token counts.

    Returns:
        None: it cannot be said in that form.
    """
    try:
        return _events(_decode(body), usage)
    except _FAULTS:
        return None


def as_whole(body: bytes) -> bytes | None:
    """A stream, with token counts at its end, as a whole answer. None: it cannot be said in that form."""
    try:
        return _encode(_answer(body))
    except _FAULTS:
        return None


def crossed(entry: Entry, key: str, exchange: Exchange) -> Entry | None:
    """The same answer under another key, in the form that a request wants. None: it cannot be had so."""
    if entry.kind == "stream":
        body = as_whole(entry.body)
    else:
        body = as_stream(entry.body, usage=asks_for_usage(exchange.peek))
    kind: Kind = "stream" if exchange.streaming else "whole"
    return None if body is None else msgspec.structs.replace(entry, key=key, kind=kind, body=body)


# --- a whole answer's events ---


def _events(answer: dict[str, Any], usage: bool) -> bytes:
    _know(answer, ("object", "choices", "usage", *NAMES, *NOTES))
    choices, counts = answer.get("choices"), answer.get("usage")
    if not choices or answer.get("object") not in OBJECTS or (usage and not counts):
        raise _Unlike
    head = {name: answer[name] for name in (*NAMES, *NOTES) if answer.get(name) is not None}
    head["object"] = OBJECTS[answer["object"]]
    pieces = [{**head, "choices": [part]} for choice in choices for part in _parts(_member(choice))]
    if usage:
        pieces = [{**piece, "usage": None} for piece in pieces]
        pieces.append({**head, "choices": [], "usage": counts})
    return b"".join(b"data: %b\n\n" % _encode(piece) for piece in pieces) + b"data: [DONE]\n\n"


def _parts(choice: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """What a choice says, and how it ended."""
    _know(choice, ("index", "message", "text", "logprobs", *ENDS))
    if not choice.get("finish_reason"):
        raise _Unlike
    said: dict[str, Any] = {"text": choice.get("text")}
    nothing: dict[str, Any] = {"text": ""}
    if "message" in choice:
        said, nothing = {"delta": _delta(_member(choice["message"]))}, {"delta": {}}
    index = choice.get("index", 0)
    yield {"index": index, **said, "logprobs": choice.get("logprobs"), "finish_reason": None}
    yield {"index": index, **nothing, "logprobs": None, **{name: choice[name] for name in ENDS if name in choice}}


def _delta(message: dict[str, Any]) -> dict[str, Any]:
    _know(message, ("role", "tool_calls", *TEXTS))
    delta = {name: value for name, value in message.items() if value not in _NOTHING or name in ("role", "content")}
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": at, **_member(call)} for at, call in enumerate(delta["tool_calls"])]
    return delta


# --- a stream's answer ---


def _answer(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in EventSplitter().feed(body):
        if event.is_done:
            break
        piece = _decode(event.data)
        _know(piece, ("object", "choices", "usage", PADDING, *NAMES, *NOTES))
        said = {name: value for name, value in piece.items() if value is not None and name not in ("choices", PADDING)}
        answer = {**answer, **said, **{name: answer[name] for name in ("object", *NAMES) if name in answer}}
        for part in piece.get("choices") or ():
            _add(choices.setdefault(_member(part).get("index", 0), {}), part)
    whole = {piece: name for name, piece in OBJECTS.items()}.get(answer.get("object", ""))
    ended = bool(choices) and all(choice.get("finish_reason") for choice in choices.values())
    if whole is None or not ended or not answer.get("usage"):
        raise _Unlike
    return {**answer, "object": whole, "choices": [_choice(at, choices[at]) for at in sorted(choices)]}


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    """One more piece of a choice."""
    _know(part, ("index", "delta", "text", "logprobs", *ENDS))
    if "delta" in part:
        _say(choice.setdefault("message", {}), _member(part["delta"] or {}))
    else:
        choice["text"] = choice.get("text", "") + (part.get("text") or "")
    for name, values in _member(part.get("logprobs") or {}).items():
        if values is not None:
            _list(choice.setdefault("logprobs", {}).setdefault(name, [])).extend(_list(values))
    choice.update((name, part[name]) for name in ENDS if part.get(name) is not None)


def _say(message: dict[str, Any], delta: dict[str, Any]) -> None:
    _know(delta, ("role", "tool_calls", *TEXTS))
    if delta.get("role"):
        message.setdefault("role", delta["role"])
    for name in TEXTS:
        if isinstance(delta.get(name), str):
            message[name] = message.get(name, "") + delta[name]
    for call in delta.get("tool_calls") or ():
        _call(message.setdefault("tool_calls", {}).setdefault(_member(call).get("index", 0), {}), call)


def _call(call: dict[str, Any], delta: dict[str, Any]) -> None:
    _know(delta, ("index", "id", "type", "function"))
    _know(function := _member(delta.get("function") or {}), ("name", "arguments"))
    for name in ("id", "type"):
        if delta.get(name):
            call.setdefault(name, delta[name])
    said = call.setdefault("function", {"name": "", "arguments": ""})
    said["name"] = said["name"] or function.get("name") or ""
    said["arguments"] += function.get("arguments") or ""


def _choice(index: int, choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.pop("message", None)
    said = {"text": choice.pop("text", "")} if message is None else {"message": _message(message)}
    return {"index": index, **said, "logprobs": None, **choice}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if calls is not None:
        message["tool_calls"] = [{"type": "function", **calls[at]} for at in sorted(calls)]
    kept = {name: value for name, value in message.items() if value or name == "content"}
    return {"role": "assistant", "content": None if calls else "", **kept}


# --- both ---


def _know(said: Mapping[str, Any], names: Iterable[str]) -> None:
    if any(value not in _NOTHING and name not in names for name, value in said.items()):
        raise _Unlike


def _member(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unlike
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Unlike
    return value
