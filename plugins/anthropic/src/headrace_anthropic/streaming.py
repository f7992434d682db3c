"""A chat's stream as a Messages stream: https://platform.claude.com/docs/en/build-with-claude/streaming

A chat may say a piece of this and a piece of that, tool calls among each other even. Here one block ends before the
next begins. So only the first block that is not whole is streamed; what belongs to later ones is held back until then.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

import msgspec

from headrace import chat
from headrace.vetting import BadEvent

from . import telling

if TYPE_CHECKING:
    from headrace.exchange import Exchange

Kind = Literal["thinking", "text", "tool_use"]
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_BLOCK_START = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%%d,"delta":{"type":"%b","%b":%%b}}\n\n'
)
_DELTAS: dict[Kind, bytes] = {
    "thinking": _DELTA % (b"thinking_delta", b"thinking"),
    "text": _DELTA % (b"text_delta", b"text"),
    "tool_use": _DELTA % (b"input_json_delta", b"partial_json"),
}
_SIGNATURE = _DELTA % (b"signature_delta", b"signature")
_EMPTY: dict[Kind, bytes] = {
    "thinking": b'{"type":"thinking","thinking":"","signature":""}',
    "text": b'{"type":"text","text":""}',
}
_encode = msgspec.json.Encoder().encode


class _Block:
    """One block, from its first piece on."""

    __slots__ = ("begun", "held", "id", "kind", "name", "said")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.id: str | None = None
        self.name = ""
        self.held: list[str] = []
        """What came and was not told yet."""
        self.said: list[str] = []
        """All of a tool call's arguments."""
        self.begun = False

    def add(self, piece: str) -> None:
        self.held.append(piece)
        if self.kind == "tool_use":
            self.said.append(piece)

    @property
    def is_whole(self) -> bool:
        """Whether nothing more can come, once something else has begun: arguments go on until they are JSON."""
        if self.kind != "tool_use":
            return True
        if not self.said or not self.said[-1].rstrip().endswith("}"):
            return False
        return telling.arguments("".join(self.said)) is not None


class MessageStream:
    """Translates one stream, event by event."""

    def __init__(self, exchange: Exchange) -> None:
        telling.name(exchange)
        self._exchange = exchange
        self._begun = False
        self._blocks: deque[_Block] = deque()
        """Those that are not over: the first of them is being told."""
        self._at = 0
        """The first one's number."""
        self._calls: dict[int, _Block] = {}
        self._called = 0
        self._refused = False
        self._finish: str | None = None
        self._matched: object = None
        self._usage: chat.Usage | None = None
        self._pieces = 0

    def feed(self, chunk: chat.Chunk) -> bytes:
        """The events that one of a chat makes.

        Raises:
            BadEvent: it makes no sense after what came before.
        """
        out = [] if self._begun else [self._start(chunk.model)]
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            if choice.index == 0:
                self._note(choice, out)
        return out[0] if len(out) == 1 else b"".join(out)

    def end(self) -> bytes:
        """The last events. Raises BadEvent: a tool call is no use."""
        out = [] if self._begun else [self._start("")]
        while self._blocks:
            self._begin(self._blocks[0], out)
            self._stop(self._blocks.popleft(), out)
        stop, sequence = telling.reason(
            self._finish, calls=self._called > 0, refused=self._refused, matched=self._matched
        )
        event = {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": sequence},
            "usage": telling.usage(self._usage, self._exchange, self._pieces),
        }
        out += [b"event: message_delta\ndata: ", _encode(event), b"\n\n", STOP]
        return b"".join(out)

    def _start(self, model: str) -> bytes:
        """The prompt's tokens are told at the end: a chat does not know them before."""
        self._begun = True
        begun = telling.message(self._exchange, model)
        begun["usage"] = {
            "input_tokens": self._exchange.prompt_tokens or 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        event = {"type": "message_start", "message": begun}
        return b"event: message_start\ndata: " + _encode(event) + b"\n\n" + PING

    def _note(self, choice: chat.ChunkChoice, out: list[bytes]) -> None:
        delta = choice.delta
        if choice.finish_reason is not None:
            self._finish = choice.finish_reason
            self._matched = getattr(choice, "stop_reason", None)
        if thought := delta.thought:
            self._say("thinking", thought, out)
        if delta.content:
            self._say("text", delta.content, out)
        if delta.refusal:
            self._refused = True
            self._say("text", delta.refusal, out)
        for call in delta.tool_calls or ():
            self._call(call, out)

    def _say(self, kind: Kind, piece: str, out: list[bytes]) -> None:
        self._pieces += 1
        blocks = self._blocks
        if len(blocks) == 1 and blocks[0].kind == kind and blocks[0].begun:
            out.append(_DELTAS[kind] % (self._at, _encode(piece)))
            return
        if not blocks or blocks[-1].kind != kind:
            blocks.append(_Block(kind))
        blocks[-1].add(piece)
        self._pump(out)

    def _call(self, call: chat.ToolCallDelta, out: list[bytes]) -> None:
        self._pieces += 1
        block = self._calls.get(call.index)
        given = call.id if isinstance(call.id, str) and call.id else None
        if block is None or (given is not None and block.id is not None and given != block.id):
            block = self._calls[call.index] = _Block("tool_use")  # some engines give all of them one index
            self._blocks.append(block)
            self._called += 1
        block.id = block.id or given
        function = call.function or chat.FunctionDelta()
        if not block.name:
            block.name = function.name or ""
        if function.arguments:
            self._add_arguments(block, function.arguments)
        self._pump(out)

    def _add_arguments(self, block: _Block, piece: str) -> None:
        if block not in self._blocks:
            if piece.strip():
                raise BadEvent(f"The model went on with a call of the tool {block.name!r} that was complete.")
            return
        block.add(piece)

    def _pump(self, out: list[bytes]) -> None:
        """Tell what can be told in order."""
        blocks = self._blocks
        while blocks and (blocks[0].kind != "tool_use" or blocks[0].name):
            self._begin(blocks[0], out)
            if len(blocks) == 1 or not blocks[0].is_whole:
                return
            self._stop(blocks.popleft(), out)

    def _begin(self, block: _Block, out: list[bytes]) -> None:
        """The block's first event, unless it is out, and what has been held back of it."""
        if not block.begun:
            block.begun = True
            out.append(_BLOCK_START % (self._at, _EMPTY.get(block.kind) or self._empty_call(block)))
        if block.held:
            out.append(_DELTAS[block.kind] % (self._at, _encode("".join(block.held))))
            block.held.clear()

    def _empty_call(self, block: _Block) -> bytes:
        if not block.name:
            raise BadEvent("The model called a tool without its name.")
        block.id = telling.tool_id(block.id, self._exchange, self._at)
        return _encode({"type": "tool_use", "id": block.id, "name": block.name, "input": {}})

    def _stop(self, block: _Block, out: list[bytes]) -> None:
        if block.kind == "tool_use" and self._finish != "length" and telling.arguments("".join(block.said)) is None:
            raise BadEvent(telling.bad_arguments(block.name).message)
        if block.kind == "thinking":
            out.append(_SIGNATURE % (self._at, b'""'))
        out.append(_BLOCK_STOP % self._at)
        self._at += 1
