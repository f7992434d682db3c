"""Our part of the encoding, read by the real protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from opentelemetry.trace import SpanKind

from headrace_otel import wire
from headrace_otel.templates import template

KEY = wire.Attribute("some.key")
IDS = st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.sampled_from([b"", b"\x01" * 8])
TIMES = st.integers(0, 2**63)


def value(encoded: bytes) -> Any:
    (attribute,) = Span.FromString(encoded).attributes
    assert attribute.key == "some.key"
    return getattr(attribute.value, attribute.value.WhichOneof("value"))


@given(st.integers(0, 2**62))
def test_integers_are_read_back(number: int) -> None:
    assert value(KEY.integer(number)) == number


@pytest.mark.parametrize("number", [-1, 1 << 63, 1 << 200])
def test_integers_that_are_none_of_64_bits_are_zero(number: int) -> None:
    assert value(KEY.integer(number)) == 0


@given(st.floats(allow_nan=False))
def test_doubles_are_read_back(number: float) -> None:
    assert value(KEY.double(number)) == number


@given(st.text(max_size=300).filter(lambda text: text.isprintable()))
def test_texts_are_read_back(text: str) -> None:
    assert value(KEY.text(text)) == text


def test_half_a_character_is_replaced() -> None:
    assert value(KEY.text("a\ud800b")) == "a?b"


def test_true_is_read_back() -> None:
    assert value(KEY.true) is True


@given(*IDS, TIMES, TIMES)
def test_heads_are_read_back(trace: bytes, own: bytes, parent: bytes, start: int, end: int) -> None:
    (read,) = ScopeSpans.FromString(wire.span(trace, own, parent, start, end, wire.SAMPLED, KEY.true)).spans
    assert (read.trace_id, read.span_id, read.parent_span_id) == (trace, own, parent)
    assert (read.start_time_unix_nano, read.end_time_unix_nano, read.flags) == (start, end, 0x101)


def test_a_template_and_what_is_added_are_one_span() -> None:
    common = template("chat x", SpanKind.SERVER, {"a": 1, "b": None, "c": "d"}, failed=True)
    sent = wire.span(b"t" * 16, b"s" * 8, b"", 1, 2, wire.SAMPLED, common + KEY.integer(300))
    span, same = ScopeSpans.FromString(sent * 2).spans
    assert span == same
    assert (span.name, span.kind, span.status.code, span.trace_id) == ("chat x", 2, 2, b"t" * 16)
    assert [each.key for each in span.attributes] == ["a", "c", "some.key"]
