"""Answering a client in its dialect from a backend that does not speak it.

The request is translated once into the canonical form (`chat.py`), and is a chat from there on: the provider sends it,
a stream that breaks is gone on with. What comes back is translated last, whole or event by event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from copy import copy
from typing import TYPE_CHECKING, Protocol

import msgspec

from .chat import Chunk, Completion
from .delivery import UNFINISHED, told_late
from .dialects import OPENAI_ENDPOINTS
from .errors import GatewayError, UpstreamError
from .estimate import choices
from .exchange import Attempt, Exchange, Reply
from .providers import spoken_by
from .streaming import EventSplitter
from .vetting import BadEvent, Vetting

if TYPE_CHECKING:
    from .exchange import Target
    from .providers import Provider

_completion = msgspec.json.Decoder(Completion).decode
_chunk = msgspec.json.Decoder(Chunk).decode
_BY_NAME = {endpoint.name: endpoint for endpoint in OPENAI_ENDPOINTS.values()}


class StreamTranslation(Protocol):
    """Translates one stream; made for each anew."""

    def feed(self, chunk: Chunk) -> bytes:
        """The events of the client's dialect that one of a chat makes; empty if none."""
        ...

    def end(self) -> bytes:
        """The last events: the answer is complete."""
        ...


class Translation(Protocol):
    """Makes a chat of an endpoint's requests, and answers of chats. An `Endpoint` has one or none."""

    into: str
    """The endpoint that is asked instead: `chat`."""

    def request(self, exchange: Exchange) -> tuple[bytes, tuple[str, ...]]:
        """The body of the chat, and what of the request it does not carry, by name.

        Raises:
            InvalidRequest: the request makes no sense, or none as a chat.
        """
        ...

    def answer(self, completion: Completion, exchange: Exchange) -> bytes:
        """The body of a whole answer."""
        ...

    def stream(self, exchange: Exchange) -> StreamTranslation: ...


def asked_of(exchange: Exchange, target: Target, provider: Provider) -> Exchange:
    """The request as a target is asked it: the client's own, or a chat in its place.

    Raises:
        InvalidRequest: it cannot be translated.
    """
    if exchange.endpoint.translation is None or exchange.endpoint.name in spoken_by(target, provider):
        return exchange
    if exchange.translated is None:
        exchange.translated = _translated(exchange, exchange.endpoint.translation)
    return exchange.translated


def _translated(exchange: Exchange, translation: Translation) -> Exchange:
    body, dropped = translation.request(exchange)
    chat = copy(exchange)
    chat.dropped = dropped
    chat.endpoint = _BY_NAME[translation.into]
    chat.path = chat.endpoint.path
    chat.take_body(body)
    chat.usage_wanted = True  # other dialects tell of it in every stream
    return chat


def translated(reply: Reply, attempt: Attempt) -> Reply:
    """A chat's reply in the client's dialect. Raises UpstreamError: it is none."""
    exchange = attempt.exchange
    translation = exchange.endpoint.translation
    if attempt.asked is exchange or translation is None:
        return reply
    if reply.stream is not None and reply.ok and reply.is_event_stream:
        stream = _events(reply.stream, translation.stream(exchange), choices(attempt.asked))
        return Reply(reply.status, reply.headers, stream=stream, close=reply.aclose, source=reply.source)
    if reply.content is None:
        raise UpstreamError("The backend's answer is too long to be translated.")
    if not reply.ok:
        content = exchange.endpoint.dialect.error_body(told_late(reply))
    else:
        content = translation.answer(_read(reply.content), exchange)
    return Reply(reply.status, reply.headers, content=content, close=reply.aclose, source=reply.source)


def _read(content: bytes) -> Completion:
    try:
        return _completion(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> UpstreamError:
    return UpstreamError("The backend's answer cannot be read.", detail=str(error))


async def _events(stream: AsyncIterator[bytes], translation: StreamTranslation, answers: int) -> AsyncIterator[bytes]:
    """The client's events. Every line is paid for every chunk.

    Raises:
        UpstreamError: the chat broke off, or told of an error.
    """
    vetting, splitter, ended = Vetting(answers), EventSplitter(), False

    def said(chunk: bytes) -> bytes:
        nonlocal ended
        parts = []
        for event in splitter.feed(chunk):
            if event.is_done:
                ended = True
            else:
                parts.append(_translate(event.data, translation))
        return b"".join(parts)

    try:
        async for chunk in stream:
            try:
                seen = vetting.look(chunk)
            except BadEvent as error:
                if error.before and (before := said(error.before)):
                    yield before
                raise
            if seen and (out := said(seen)):
                yield out
        if (rest := vetting.rest()) and (out := said(rest + b"\n\n")):
            yield out
        if not (ended or vetting.finished):
            raise UpstreamError(UNFINISHED)
    except GatewayError as error:
        if isinstance(error, BadEvent) or not vetting.finished:
            raise  # else all was said; what broke is the farewell
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    yield translation.end()


def _translate(data: bytes, translation: StreamTranslation) -> bytes:
    try:
        chunk = _chunk(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(error) from error
    return translation.feed(chunk)
