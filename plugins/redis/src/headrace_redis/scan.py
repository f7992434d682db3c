"""Lists what has been used of sums, for commands: some keys at a time, so that the server serves others between."""

from __future__ import annotations

import re

import msgspec

from .connection import Connection

SCRIPT = b"""
local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 500)
local answer = {}
for each, key in ipairs(found[2]) do
  answer[each] = {key, redis.call('HGET', key, 'used') or '0'}
end
return cmsgpack.pack({found[1], answer})
"""

_ANSWER = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, str]]])


async def sums(connection: Connection, start: str, prefix: str) -> list[tuple[str, int]]:
    """Keys of sums that begin with `prefix`, in order, with what is used. `start`: what the server has before each.

    Raises:
        ErrorReply, Lost, msgspec.DecodeError: the server does not answer, or not to that.
    """
    pattern = re.sub(r"([][*?^\\-])", r"\\\1", start + prefix) + "*"
    cursor, found = "0", dict[str, int]()
    while True:
        answer = await connection.ask(b"EVAL", SCRIPT, b"0", cursor.encode(), pattern.encode())
        cursor, keys = _ANSWER.decode(answer)
        found.update((key.removeprefix(start), int(used)) for key, used in keys)
        if cursor == "0":
            return sorted(found.items())
