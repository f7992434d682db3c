"""What was asked and answered, for `bodies = true`: found, redacted, cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from headrace.exchange import Exchange
from headrace.streaming import Event

from .config import LogsConfig
from .redaction import MARGIN, Redactor

PARSE_LIMIT = 1_048_576
"""Bodies up to this many bytes are parsed; of larger ones only the beginning is read, as text."""

TEXT_NAMES = frozenset(
    ("content", "text", "reasoning_content", "reasoning", "refusal", "arguments", "partial_json", "thinking", "delta")
)
"""Where the dialects keep what a model said: OpenAI's chat, completions and responses, Anthropic's messages."""

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SHORT_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


class BodiesLine(
    msgspec.Struct,
    kw_only=True,
    omit_defaults=True,
    rename={
        "user": "user.id",
        "model": "gen_ai.request.model",
        "status": "http.response.status_code",
        "error_evidence": "error.evidence",
    },
):
    """A line of the file of bodies: what was asked and answered, and whose it is."""

    timestamp: str
    event: str
    request_id: str
    user: str | None = None
    model: str | None = None
    status: int
    request_body: str | None = None
    response_text: str | None = None
    error_evidence: str | None = None


class Selection:
    """Whose bodies are logged."""

    def __init__(self, config: LogsConfig) -> None:
        self._models = None if config.bodies_models is None else frozenset(config.bodies_models)
        self._users = None if config.bodies_users is None else frozenset(config.bodies_users)
        self.answers = config.bodies_of == "both"

    def has(self, exchange: Exchange) -> bool:
        """Whether those of this request are."""
        if self._models is not None and (exchange.model is None or exchange.model.name not in self._models):
            return False
        if self._users is None:
            return True
        who = exchange.principal
        return who is not None and not self._users.isdisjoint((who.id, who.name, who.team))


class AnswerTap:
    """Collects an answer's text from a reply, whole or streamed, so that secrets across chunks are whole again."""

    wants: Literal["bytes", "events", "usage"] = "events"

    def __init__(self, limit: int) -> None:
        self._room = limit + MARGIN + 1
        self._pieces: dict[int, list[str]] = {}

    def feed(self, item: Event) -> None:
        if self._room <= 0 or item.is_done:
            return
        try:
            answer = item.json()
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._add(0, item.data.decode("utf-8", "replace"))
            return
        for index, part in _choices(answer):
            for text in _texts(part):
                self._add(index, text)

    def close(self, completed: bool) -> None:
        """Nothing to release."""

    def _add(self, index: int, text: str) -> None:
        if self._room > 0:
            self._pieces.setdefault(index, []).append(text[: self._room])
            self._room -= len(text)

    def text(self) -> str:
        """What was collected; several choices one below the other."""
        return "\n".join("".join(pieces) for _, pieces in sorted(self._pieces.items()))


def request_text(body: bytes, redactor: Redactor, limit: int) -> str:
    """A request's body as JSON text, redacted and cut to `limit` characters."""
    if len(body) <= PARSE_LIMIT:
        try:
            tree = redactor.tree(msgspec.json.decode(body), limit)
            return _cut(msgspec.json.encode(tree).decode(), limit)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass  # not JSON, or not within reason: what follows takes any bytes
    beginning = body[: 6 * (limit + MARGIN)].decode("utf-8", "replace")  # an escape takes up to six bytes
    return redactor.prefix(_unescaped(beginning), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _unescaped(text: str) -> str:
    """JSON's escapes resolved, so that patterns see what the text says."""
    return _ESCAPE.sub(
        lambda match: chr(int(match[1], 16)) if match[1] else _SHORT_ESCAPES.get(match[2], match[2]), text
    )


def _choices(answer: Any) -> Iterator[tuple[int, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        yield 0, answer
        return
    for choice in choices:
        index = choice.get("index") if isinstance(choice, dict) else None
        yield index if isinstance(index, int) else 0, choice


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str):
                if name in TEXT_NAMES:
                    yield item
            else:
                yield from _texts(item)
