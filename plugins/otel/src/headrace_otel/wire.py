"""The protobuf encoding of what differs from span to span: ids, times, and the values of a few attributes.

Everything else of a span the SDK encodes, once for each kind of span: see `templates.py`. Two encodings of parts of one
message, one after the other, are the encoding of the whole: https://protobuf.dev/programming-guides/encoding/#last-one-wins.
Fields: https://github.com/open-telemetry/opentelemetry-proto, `trace/v1/trace.proto` and `common/v1/common.proto`.
"""

from __future__ import annotations

from struct import Struct

SPANS = b"\x12"
"""`ScopeSpans.spans`."""
_ATTRIBUTES = b"\x4a"
"""`Span.attributes`."""
_KEY, _VALUE = b"\x0a", b"\x12"
"""`KeyValue.key`, `KeyValue.value`."""
_TEXT, _TRUE, _INTEGER, _DOUBLE = b"\x0a", b"\x10\x01", b"\x18", b"\x21"
"""`AnyValue.string_value`, `.bool_value`, `.int_value`, `.double_value`."""
MOST_KNOWN, MOST_INTEGER = 4096, 1 << 63
_DOUBLES = Struct("<cd")
_HEAD = Struct("<2s16s2s8ssQsQ2sI")
_PARENT = b"\x22\x08"
"""`Span.parent_span_id`, eight bytes long."""
SAMPLED, REMOTE_PARENT = 0x101, 0x301
"""`Span.flags`: recorded, with a parent of our own (or none), or one in another process."""


def varint(number: int) -> bytes:
    """A number, not negative: seven bits a byte, the low ones first."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def field(tag: bytes, data: bytes) -> bytes:
    """A field that says its length: a message, a text or bytes."""
    return tag + varint(len(data)) + data


def span(trace_id: bytes, span_id: bytes, parent: bytes, start: int, end: int, flags: int, rest: bytes) -> bytes:
    """A span as a field of those that are exported together. Ids of 16, 8 and 8 bytes, the last one perhaps empty;
    times in nanoseconds since 1970; `rest` is encoded."""
    head = _HEAD.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x39", start, b"\x41", end, b"\x85\x01", flags)
    if parent:
        return b"".join((SPANS, varint(len(head) + 10 + len(rest)), head, _PARENT, parent, rest))
    return b"".join((SPANS, varint(len(head) + len(rest)), head, rest))


class Attribute:
    """An attribute of a span, by its key: what can be worked out of it before its value is known."""

    __slots__ = ("_double", "_integers", "_key", "_known", "_texts", "true")

    def __init__(self, key: str) -> None:
        self._key = field(_KEY, key.encode())
        self._double = self._before(9)
        self._known: dict[int, bytes] = {}
        self._integers = [self._before(size) + _INTEGER for size in range(12)]
        self._texts = [self._before(2 + size) + _TEXT + varint(size) for size in range(64)]
        self.true = self._before(2) + _TRUE
        """The attribute, with the value true."""

    def _before(self, size: int) -> bytes:
        """What stands before a value of so many bytes (less than 100)."""
        return _ATTRIBUTES + varint(len(self._key) + 2 + size) + self._key + _VALUE + varint(size)

    def integer(self, value: int) -> bytes:
        """Small ones come again and again; one that a backend cannot have meant is 0."""
        known = self._known.get(value)
        if known is None:
            encoded = varint(value if 0 <= value < MOST_INTEGER else 0)
            known = self._integers[len(encoded) + 1] + encoded
            if 0 <= value < MOST_KNOWN:
                self._known[value] = known
        return known

    def double(self, value: float) -> bytes:
        return self._double + _DOUBLES.pack(_DOUBLE, value)

    def text(self, value: str) -> bytes:
        data = value.encode("utf-8", "replace")
        if len(data) < 64:
            return self._texts[len(data)] + data
        data = field(_TEXT, data)
        return field(_ATTRIBUTES, self._key + field(_VALUE, data))
