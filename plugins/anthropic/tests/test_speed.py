"""What the translation of a stream costs, a chunk: a generous bound, for a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from headrace import chat
from headrace_anthropic.events import ChatStream
from headrace_anthropic.streaming import MessageStream

CHUNKS = 2000
MOST = 40e-6
"""Seconds."""


def best_of(runs: int, run: Callable[[], None]) -> float:
    """Seconds a chunk, in the quietest moment."""
    found = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        found.append((time.perf_counter() - started) / CHUNKS)
    return min(found)


def test_a_chats_chunk_is_a_messages_event_in_time(kit: Any) -> None:
    said = chat.event(chat.Chunk([chat.ChunkChoice(chat.Delta(content="word "))], "c", "m"))
    data = said.removeprefix(b"data: ")
    decode = msgspec.json.Decoder(chat.Chunk).decode

    def run() -> None:
        stream = MessageStream(kit.an_exchange())
        for _ in range(CHUNKS):
            stream.feed(decode(data))

    taken = best_of(7, run)
    print(f"chat → messages: {taken * 1e6:.1f} µs a chunk")
    assert taken < MOST


def test_an_event_is_a_chats_chunk_in_time() -> None:
    data = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"word "}}'

    def run() -> None:
        stream = ChatStream()
        for _ in range(CHUNKS):
            stream.feed(data)

    taken = best_of(7, run)
    print(f"messages → chat: {taken * 1e6:.1f} µs a chunk")
    assert taken < MOST


def test_arguments_that_wait_for_others_are_not_read_again_and_again(kit: Any) -> None:
    def piece(index: int, text: str, name: str | None = None) -> chat.Chunk:
        call = chat.ToolCallDelta(index, f"t{index}" if name else None, "function", chat.FunctionDelta(name, text))
        return chat.Chunk([chat.ChunkChoice(chat.Delta(tool_calls=[call]))])

    def run() -> None:
        stream = MessageStream(kit.an_exchange())
        stream.feed(piece(0, '{"a":[', "f"))
        stream.feed(piece(1, '{"b":[', "g"))
        for number in range(CHUNKS // 2):
            stream.feed(piece(0, "{}," if number % 2 else '"}",'))
            stream.feed(piece(1, "1,"))

    taken = best_of(3, run)
    print(f"calls among each other: {taken * 1e6:.1f} µs a chunk")
    assert taken < MOST
