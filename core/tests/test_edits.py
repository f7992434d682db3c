"""Edits of a body change the named fields and keep every other byte, whatever a client has sent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.edits import Edit, apply, decode_fields, edit, find_edits, merge_fields
from headrace.errors import InvalidRequest

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SPACE = st.text(" \t\r\n", max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.sampled_from(["model", "stream_options", "", "a", 'q"\\', "ä\u2028", "🦉", "\x00\n"]) | TEXT
NUMBERS = st.sampled_from(["0", "-0", "1e999", "-1.5E+3", "123456789012345678901234567890", "0.1000"])
SCALARS = NUMBERS | st.sampled_from(["true", "false", "null"])


@st.composite
def quoted(draw: st.DrawFn, text: str) -> str:
    """The text as a JSON string, with escapes where none are needed."""
    said = []
    for character in text:
        plain = json.dumps(character, ensure_ascii=False)[1:-1]
        escaped = json.dumps(character)[1:-1] if ord(character) > 127 else f"\\u{ord(character):04X}"
        said.append(draw(st.sampled_from([plain, escaped])))
    return f'"{"".join(said)}"'


VALUES = st.recursive(
    SCALARS | TEXT.flatmap(quoted),
    lambda inner: (
        st.lists(st.tuples(SPACE, inner, SPACE).map("".join), max_size=3).map(lambda each: f"[{','.join(each)}]")
        | st.lists(st.tuples(SPACE, TEXT.flatmap(quoted), SPACE, st.just(":"), inner).map("".join), max_size=3).map(
            lambda each: f"{{{','.join(each)}}}"
        )
    ),
    max_leaves=6,
)


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str, str]]]:
    """A JSON object's bytes; and its fields: name, what stands before the value, the value."""
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    opening, between, fields = draw(SPACE) + "{", "", []
    for name in names:
        before = f"{between}{draw(SPACE)}{draw(quoted(name))}{draw(SPACE)}:{draw(SPACE)}"
        fields.append((name, opening + before, draw(VALUES)))
        opening, between = draw(SPACE), ","
    closing = ("" if fields else opening) + draw(SPACE) + "}" + draw(SPACE)
    body = "".join(before + value for _, before, value in fields)
    body += closing if not fields else opening + closing
    return body.encode(), fields


CHANGES = st.dictionaries(
    NAMES,
    TEXT | st.integers(-(2**60), 2**60) | st.dictionaries(TEXT, TEXT | st.booleans(), max_size=2),
    min_size=1,
    max_size=3,
)


def read(body: bytes) -> dict[str, Any]:
    """The body with numbers as they stand there: none is rounded."""
    found: dict[str, Any] = json.loads(body, parse_int=str, parse_float=str)
    return found


def as_read(value: Any) -> Any:
    return read(msgspec.json.encode({"": value}))[""]


@FAST
@given(objects(), CHANGES)
def test_the_edited_body_is_the_object_with_the_changes(
    given_object: tuple[bytes, list[tuple[str, str, str]]], changes: dict[str, Any]
) -> None:
    body, _ = given_object
    edited, _ = edit(body, decode_fields(body), changes)
    assert read(edited) == {**read(body), **{name: as_read(value) for name, value in changes.items()}}


@FAST
@given(objects(), CHANGES)
def test_every_byte_outside_the_changed_values_stays(
    given_object: tuple[bytes, list[tuple[str, str, str]]], changes: dict[str, Any]
) -> None:
    body, fields = given_object
    _, edits = edit(body, decode_fields(body), changes)
    assert edits
    kept = [
        body[a.end : b.start] for a, b in zip((Edit(0, 0, ""), *edits), (*edits, Edit(len(body), 0, "")), strict=True)
    ]
    wanted, whole = [b""], body.decode()
    at = whole.index("{") + 1
    if any(name not in {each for each, _, _ in fields} for name in changes):
        wanted = [whole[:at].encode(), b""]
        whole = whole[at:]
        fields = [
            (name, before[at:] if not number else before, value) for number, (name, before, value) in enumerate(fields)
        ]
    for name, before, value in fields:
        wanted[-1] += before.encode()
        if name in changes:
            wanted.append(b"")
        else:
            wanted[-1] += value.encode()
    wanted[-1] += whole[sum(len(before + value) for _, before, value in fields) :].encode()
    assert kept == wanted


@FAST
@given(objects(), CHANGES)
def test_the_edits_make_the_edited_body_out_of_the_clients(
    given_object: tuple[bytes, list[tuple[str, str, str]]], changes: dict[str, Any]
) -> None:
    body, _ = given_object
    edited, edits = edit(body, decode_fields(body), changes)
    assert apply(body, edits) == edited
    places = [place for each in edits for place in (each.start, each.end)]
    assert places == sorted(places)


@FAST
@given(objects(), CHANGES)
def test_edits_can_stand_in_a_header(
    given_object: tuple[bytes, list[tuple[str, str, str]]], changes: dict[str, Any]
) -> None:
    body, _ = given_object
    _, edits = edit(body, decode_fields(body), changes)
    said = msgspec.json.encode(edits)
    assert said.isascii() and said.decode().isprintable()
    assert all(each.text.isascii() and each.text.isprintable() for each in edits)


@FAST
@given(objects(), NAMES)
def test_a_field_is_removed_without_edits(given_object: tuple[bytes, list[tuple[str, str, str]]], name: str) -> None:
    body, _ = given_object
    left, edits = edit(body, decode_fields(body), {name: None})
    assert edits == ()
    assert name not in read(left)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b","n":1}',
        b'{"n":1,"model":"a","n":2}',
        b'{"model":"a","mod\\u0065l":"b","n":1}',
        b'{"n":[1],"n":[2],"model":"a"}',
    ],
)
def test_a_body_with_a_field_that_stands_there_twice_is_encoded_anew(body: bytes) -> None:
    fields = decode_fields(body)
    edited, edits = edit(body, fields, {"model": "new"})
    assert edits == ()
    assert edited == merge_fields(fields, {"model": "new"})
    assert json.loads(edited, object_pairs_hook=list) == [
        (name, "new" if name == "model" else value) for name, value in json.loads(body).items()
    ]


def test_the_last_of_two_equal_fields_counts() -> None:
    body = b'{"n":1,"n":2}'
    assert edit(body, decode_fields(body), {"model": "m"})[0] == b'{"n":2,"model":"m"}'


def test_a_field_that_is_not_there_is_put_first() -> None:
    body = b'{ "messages": [] }'
    edited, edits = edit(body, decode_fields(body), {"model": "m", "n": 1})
    assert edited == b'{"model":"m","n":1, "messages": [] }'
    assert edits == (Edit(1, 1, '"model":"m","n":1,'),)


def test_a_field_put_into_an_empty_object_leaves_valid_json() -> None:
    body = b" { } "
    edited, _ = edit(body, decode_fields(body), {"model": "m"})
    assert json.loads(edited) == {"model": "m"}


def test_a_field_of_the_same_name_deeper_down_stays() -> None:
    body = b'{"tools":[{"model":"deep"}],"model":"top"}'
    edited, edits = edit(body, decode_fields(body), {"model": "new"})
    assert edited == b'{"tools":[{"model":"deep"}],"model":"new"}'
    assert edits == (Edit(36, 41, '"new"'),)


def test_characters_beyond_ascii_are_escaped_in_edits() -> None:
    body = b'{"model":"a"}'
    _, edits = edit(body, decode_fields(body), {"model": "mä🦉\u2028\x7f"})
    assert edits == (Edit(9, 12, '"m\\u00e4\\ud83e\\udd89\\u2028\\u007f"'),)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"a":', b'{"a":1}x', b"\xff", b'{"a":1,}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_fields(body)
    assert refused.value.code == "invalid_json"


def test_large_bodies_are_edited_without_looking_at_their_values() -> None:
    body = b'{"messages":[{"role":"user","content":"' + b"x" * 8_000_000 + b'"}],"model":"a"}'
    edits = find_edits(body, decode_fields(body), {"model": "b"})
    assert edits == (Edit(len(body) - 4, len(body) - 1, '"b"'),)
