"""The little of Redis's protocol (RESP 2) that is needed: commands out; a string, a number or an error in."""

from __future__ import annotations

from collections.abc import Iterator

LONGEST = 16_000_000
"""Bytes of an answer. Ours have some thousands."""
LONGEST_LINE = 65_536


class Garbage(Exception):
    """What arrived is not Redis's protocol."""


class ErrorReply(Exception):
    """The server has refused a command. Begins with a word in capitals that says why: `NOSCRIPT`, `OOM`."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


Reply = bytes | None | ErrorReply


def command(*words: bytes) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


class Replies:
    """Answers out of the bytes that arrive, in whatever pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Reply]:
        """The answers that are complete now. Raises Garbage."""
        self._rest = self._rest + data if self._rest else data
        while self._rest:
            found = _one(self._rest)
            if found is None:
                return
            reply, end = found
            self._rest = self._rest[end:]
            yield reply


def _one(data: bytes) -> tuple[Reply, int] | None:
    """The first answer, and where it ends; None if it is not complete."""
    line_end = data.find(b"\r\n", 0, LONGEST_LINE)
    if line_end < 0:
        if len(data) >= LONGEST_LINE or data[:1] not in b"$+-:":
            raise Garbage("the answer is no answer of Redis")
        return None
    line, start = data[1:line_end], line_end + 2
    match data[:1]:
        case b"$":
            return _string(data, line, start)
        case b"+" | b":":
            return line, start
        case b"-":
            return ErrorReply(line.decode("utf-8", "replace")), start
        case _:
            raise Garbage("the answer is no answer of Redis")


def _string(data: bytes, line: bytes, start: int) -> tuple[Reply, int] | None:
    if line == b"-1":
        return None, start
    if not line.isdigit() or (length := int(line)) > LONGEST:
        raise Garbage("the answer has no length")
    end = start + length
    if len(data) < end + 2:
        return None
    return data[start:end], end + 2
