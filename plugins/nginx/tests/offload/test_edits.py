"""Bodies that the core changes and nginx sends: byte for byte what the core would have sent."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import edits
from headrace_nginx.handover import EDIT_BYTES


def sent(stage: Any, http: Any, body: bytes, changes: list[list[Any]]) -> bytes:
    stage.ask([http.answer(b"{}")], body=body, edits=changes)
    arrived = stage.backend.arrived[-1]
    assert arrived.headers["content-length"] == str(len(arrived.body))
    return bytes(arrived.body)


TEXT = "Grüße, 你好, 🦊 \\ud83e\\udd8a \\u0000"
UNICODE = f'{{"model":"m","messages":[{{"role":"user","content":"{TEXT}"}}],"x":"\u2028\ufeff"}}'.encode()


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (b'{"model":"m"}', {"model": "another"}),
        (UNICODE, {"model": "modèle-🦊"}),
        (UNICODE, {"x": "", "stream_options": {"include_usage": True}}),
        (
            b' \r\n{ "a" : 1,\t"model"\n:  "m" , "stream":true }\n\n',
            {"model": "b", "stream_options": {"include_usage": True}},
        ),
        (b'{"model":"m","n":1e400,"raw":"\xc3\xa4\x7f"}', {"model": "m\\\"$'{}\n"}),
    ],
)
def test_an_edited_body_is_the_one_that_the_core_would_send(
    stage: Any, http: Any, body: bytes, changes: dict[str, Any]
) -> None:
    wanted, found = edits.edit(body, edits.decode_fields(body), changes)
    assert found
    assert sent(stage, http, body, [[each.start, each.end, each.text] for each in found]) == wanted


def test_a_body_without_edits_arrives_as_it_is(stage: Any, http: Any) -> None:
    assert sent(stage, http, UNICODE, []) == UNICODE


def test_insertions_at_one_place_stand_in_their_order(stage: Any, http: Any) -> None:
    assert sent(stage, http, b"{}", [[1, 1, "a"], [1, 1, "b"], [2, 2, "c"]]) == b"{ab}c"


def test_bytes_that_are_no_utf_8_arrive_as_they_are(stage: Any, http: Any) -> None:
    assert sent(stage, http, b'{"a":"\xff\xfe\xc3"}', [[1, 1, '"b":1,']]) == b'{"b":1,"a":"\xff\xfe\xc3"}'


def test_the_largest_body_that_may_be_edited_is_edited(stage: Any, http: Any) -> None:
    filling = ("é" * EDIT_BYTES).encode()[: EDIT_BYTES - 8]
    body = b'{"a":"' + filling + b'"}'
    assert len(body) == EDIT_BYTES
    assert sent(stage, http, body, [[1, 1, '"b":1,']]) == b'{"b":1,' + body[1:]
