"""Streams that break are gone on with, by another backend or the same one (`midstream = "resume"`).

A backend that can is given what was said so far, as the beginning of its own answer. Any other begins anew, if the
answer must come out the same: then what was said already is left out. What can neither be continued nor repeated ends
with an error, as any stream that breaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .dialects import OPENAI
from .edits import decode_fields, merge_fields
from .errors import GatewayError, UpstreamError
from .estimate import choices
from .exchange import Exchange, Reply, Target, UpstreamRequest
from .journal import Journal

if TYPE_CHECKING:
    from .offload import Report

BOUND = (
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("echo", "suffix"),
)
"""Fields that bind an answer from its first character on, or to its last: it cannot be begun in the middle."""
LIMITS = ("max_tokens", "max_completion_tokens")

GoOn = Callable[[Journal, GatewayError], Awaitable[Reply]]
"""Finds somebody who goes on. Raises GatewayError: nobody does."""


def may_break(exchange: Exchange, reply: Reply) -> bool:
    """Whether this is a stream that somebody could go on with."""
    return (
        reply.stream is not None
        and reply.ok
        and reply.is_event_stream
        and exchange.endpoint.dialect is OPENAI
        and choices(exchange) == 1
    )


def resumed(reply: Reply, go_on: GoOn) -> Reply:
    """The same reply, whose stream does not end before the answer does, if that can be had."""
    stream = _Stream(reply, go_on)
    return Reply(reply.status, reply.headers, stream=stream.events(), close=stream.aclose, source=reply.source)


class _Stream:
    """The events of an answer, whoever gives them."""

    def __init__(self, reply: Reply, go_on: GoOn) -> None:
        self._reply, self._go_on = reply, go_on
        self._journal = Journal()

    async def aclose(self) -> None:
        await self._reply.aclose()

    async def events(self) -> AsyncIterator[bytes]:
        """Raises GatewayError: it broke, and nobody goes on."""
        journal = self._journal
        while True:
            try:
                async for event in self._of_one():
                    yield event
                if journal.finished or journal.ended:
                    return
                raise UpstreamError("The backend ended the stream before the answer was complete.")
            except GatewayError as error:
                await self._reply.aclose()
                if journal.finished:
                    return  # what is missing is the farewell
                if journal.fixed:
                    raise
                self._reply = await self._go_on(journal, error)

    async def _of_one(self) -> AsyncIterator[bytes]:
        """What one backend says."""
        hurry = getattr(self._reply.stream, "hurry", None)
        assert self._reply.stream is not None
        async for chunk in self._reply.stream:
            for event in self._journal.feed(chunk):
                yield event
            if self._journal.finished and hurry is not None:
                hurry()
                hurry = None


def can_go_on(exchange: Exchange, target: Target, *, journal: Journal) -> bool:
    """Whether a target can be asked to go on."""
    return not journal.text or _continues(exchange, target) or _repeats(exchange)


def _continues(exchange: Exchange, target: Target) -> bool:
    """Whether it can be given the beginning of its answer."""
    if any(bytes(exchange.fields.get(name, _NULL)) not in (b"null", b"false") for name in BOUND):
        return False
    if exchange.endpoint.name != "chat":
        return _one_text(exchange) is not None
    return target.prefill and (not _is_continued(exchange.fields) or _begun_by_client(exchange.fields) is not None)


def _is_continued(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the client itself has given the beginning of the answer."""
    return bytes(fields.get("continue_final_message", _NULL)) == b"true"


def _begun_by_client(fields: Mapping[str, msgspec.Raw]) -> dict[str, Any] | None:
    """The message that the client wants gone on with, if text can be put behind it."""
    try:
        last = msgspec.json.decode(fields["messages"], type=list[dict[str, Any]])[-1]
    except (KeyError, IndexError, msgspec.MsgspecError):
        return None
    return last if isinstance(last.get("content"), str) else None


def _repeats(exchange: Exchange) -> bool:
    """Whether the same request is answered in the same words."""
    return getattr(exchange.peek, "temperature", None) == 0 or exchange.fields.get("seed", _NULL) != _NULL


_NULL = msgspec.Raw(b"null")


def _one_text(exchange: Exchange) -> str | None:
    """The prompt of a completion, if it is one text."""
    try:
        return msgspec.json.decode(exchange.fields["prompt"], type=str)
    except (KeyError, msgspec.MsgspecError):
        return None


def continue_in(request: UpstreamRequest, exchange: Exchange, target: Target, journal: Journal) -> None:
    """Make a request for a whole answer one for the rest of it, if the target can do that; else for all of it again."""
    anew = not journal.text or not _continues(exchange, target)
    journal.follow(anew=anew)
    if anew:
        return
    fields = decode_fields(request.body)
    request.body = merge_fields(fields, {**_beginning(fields, journal), **_limits(fields, journal)})
    request.edits = ()


def _beginning(fields: dict[str, msgspec.Raw], journal: Journal) -> dict[str, Any]:
    """See https://docs.vllm.ai/en/latest/api/vllm/entrypoints/openai/protocol/ for vLLM's fields."""
    if "prompt" in fields:
        return {"prompt": msgspec.json.decode(fields["prompt"], type=str) + journal.text}
    messages: list[Any] = msgspec.json.decode(fields["messages"], type=list[msgspec.Raw])
    said: dict[str, Any] = {"role": "assistant", "content": journal.text}
    begun = _begun_by_client(fields) if _is_continued(fields) else None
    if begun is not None:
        messages, said = messages[:-1], {**begun, "content": begun["content"] + journal.text}
    return {"messages": [*messages, said], "continue_final_message": True, "add_generation_prompt": False}


def _limits(fields: dict[str, msgspec.Raw], journal: Journal) -> dict[str, int]:
    """What is left of the tokens that the answer may have."""
    found = {}
    for name in LIMITS:
        limit = msgspec.json.decode(fields[name]) if name in fields else None
        if isinstance(limit, int):
            found[name] = max(1, limit - journal.pieces)
    return found


def refused(reply: Reply | Report) -> GatewayError:
    """The error of a backend that does not go on, in whatever way it says so."""
    return GatewayError("The backend does not go on with the answer.", status=reply.status, retryable=True)
