"""A Messages stream as a chat's: https://platform.claude.com/docs/en/build-with-claude/streaming"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import ClassVar

import msgspec

from headrace import chat
from headrace.errors import GatewayError, UpstreamError
from headrace.streaming import EventSplitter
from headrace.vetting import FAILED, malformed

from . import reply, wire

UNFINISHED = "The backend ended the stream before the answer was complete."
_event = msgspec.json.Decoder(wire.Event).decode


async def chat_events(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chat's events. Every line is paid for every chunk.

    Raises:
        UpstreamError: the stream broke off, told of an error, or cannot be read.
    """
    splitter, translation = EventSplitter(), ChatStream()
    try:
        async for piece in stream:
            out = b"".join([translation.feed(event.data) for event in splitter.feed(piece)])
            if out:
                yield out
            if translation.ended:
                hurry = getattr(stream, "hurry", None)
                if hurry is not None:
                    hurry()
        if not translation.ended:
            raise UpstreamError(UNFINISHED)
    except GatewayError:
        if not translation.ended:
            raise  # else all was said; what broke is the farewell
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


class ChatStream:
    """Translates one stream, event by event.

    Attributes:
        ended: whether the last event has come.
    """

    def __init__(self) -> None:
        self.ended = False
        self._id, self._model, self._created = "", "", int(time.time())
        self._usage = wire.Usage()
        self._calls: dict[int, int] = {}
        """Numbers of tool calls, by those of their blocks."""
        self._silent: set[int] = set()
        """Blocks of tool calls whose arguments have not begun."""

    def feed(self, data: bytes) -> bytes:
        """What one event makes. Raises UpstreamError."""
        try:
            event = _event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(data) from error
        if event.type == "content_block_delta" and event.delta is not None:
            return self._delta(event.index, event.delta)
        if event.type == "error":
            words = f"{event.error.type}: {event.error.message}" if event.error else None
            raise UpstreamError(FAILED, detail="an error event in the stream", evidence=words)
        handle = self._HANDLERS.get(event.type)
        return b"" if handle is None else handle(self, event)

    def _delta(self, index: int, delta: wire.Delta) -> bytes:
        if delta.type == "text_delta":
            return self._say(chat.Delta(content=delta.text))
        if delta.type == "thinking_delta":
            return self._say(chat.Delta(reasoning_content=delta.thinking))
        if delta.type == "input_json_delta" and delta.partial_json and index in self._calls:
            self._silent.discard(index)
            return self._argue(index, delta.partial_json)
        return b""

    def _start(self, event: wire.Event) -> bytes:
        if event.message is not None:
            self._id, self._model = event.message.id, event.message.model
            self._usage = event.message.usage or self._usage
        return self._say(chat.Delta(role="assistant", content=""))

    def _begin(self, event: wire.Event) -> bytes:
        block = event.content_block
        if block is None:
            return b""
        if block.type != "tool_use":
            text, thought = block.text, block.thinking
            return (
                self._say(chat.Delta(content=text or None, reasoning_content=thought or None))
                if text or thought
                else b""
            )
        number = self._calls[event.index] = len(self._calls)
        given = bytes(block.input).decode()
        if given.strip("{} \t\r\n"):
            function = chat.FunctionDelta(block.name, given)  # some servers say it all at once
        else:
            self._silent.add(event.index)
            function = chat.FunctionDelta(block.name, "")
        return self._say(chat.Delta(tool_calls=[chat.ToolCallDelta(number, block.id, "function", function)]))

    def _stop(self, event: wire.Event) -> bytes:
        if event.index not in self._silent:
            return b""
        self._silent.discard(event.index)
        return self._argue(event.index, "{}")

    def _argue(self, index: int, piece: str) -> bytes:
        function = chat.FunctionDelta(arguments=piece)
        return self._say(chat.Delta(tool_calls=[chat.ToolCallDelta(self._calls[index], function=function)]))

    def _finish(self, event: wire.Event) -> bytes:
        self._usage = self._usage.updated(event.usage)
        delta = event.delta
        if delta is None or delta.stop_reason is None:
            return b""
        refusal = delta.stop_details.explanation if delta.stop_details else None
        return self._say(chat.Delta(refusal=refusal), reply.finish(delta.stop_reason))

    def _end(self, event: wire.Event) -> bytes:
        self.ended = True
        return chat.event(self._chunk([], reply.usage(self._usage))) + chat.DONE

    _HANDLERS: ClassVar[Mapping[str, Callable[[ChatStream, wire.Event], bytes]]] = {
        "message_start": _start,
        "content_block_start": _begin,
        "content_block_stop": _stop,
        "message_delta": _finish,
        "message_stop": _end,
    }

    def _say(self, delta: chat.Delta, finish: str | None = None) -> bytes:
        return chat.event(self._chunk([chat.ChunkChoice(delta, finish_reason=finish)]))

    def _chunk(self, choices: list[chat.ChunkChoice], usage: chat.Usage | None = None) -> chat.Chunk:
        return chat.Chunk(choices, self._id, self._model, self._created, usage=usage)
