"""Changing a few fields of a JSON object and keeping every other byte as the client sent it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import InvalidRequest

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY = re.compile(rb'[ \t\r\n]*,?[ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')


class Edit(msgspec.Struct, frozen=True, array_like=True):
    """Bytes `start` to `end` of a body, replaced by `text`: JSON in ASCII."""

    start: int
    end: int
    text: str


DELETE = "\x7f"
"""ASCII, and yet it cannot stand in a header."""
Edits = tuple[Edit, ...]
"""In the order of their places, without overlap."""


def decode_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """Split a JSON object into its fields without decoding their values.

    Raises:
        InvalidRequest: `body` is not a JSON object.
    """
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not a JSON object: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from error


def merge_fields(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
    """Encode `fields` with `changes` applied; None removes a field."""
    merged: dict[str, Any] = {**fields, **changes}
    return msgspec.json.encode({name: value for name, value in merged.items() if value is not None})


def edit(body: bytes, fields: Mapping[str, msgspec.Raw], changes: Mapping[str, Any]) -> tuple[bytes, Edits]:
    """Set top-level fields: the new body, and the edits that made it.

    A body with a field that stands there twice, or that loses one, is encoded anew, and then there are no edits.
    """
    edits = find_edits(body, fields, changes)
    return (merge_fields(fields, changes), ()) if edits is None else (apply(body, edits), edits)


def find_edits(body: bytes, fields: Mapping[str, msgspec.Raw], changes: Mapping[str, Any]) -> Edits | None:
    """The edits that set `changes`; None if the fields do not stand in the body one after the other."""
    if None in changes.values():
        return None
    start = at = body.index(b"{") + 1
    found = []
    for name, value in fields.items():
        key = _KEY.match(body, at)
        if key is None or msgspec.json.decode(key[1]) != name:
            return None
        at = key.end() + memoryview(value).nbytes
        if name in changes:
            found.append(Edit(key.end(), at, _json(changes[name])))
    if body[at:].strip() != b"}":
        return None
    added = "".join(f"{_json(name)}:{_json(changes[name])}," for name in changes if name not in fields)
    if not fields:
        added = added.removesuffix(",")
    return ((Edit(start, start, added),) if added else ()) + tuple(found)


def apply(body: bytes, edits: Edits) -> bytes:
    """The edited body."""
    parts, at = [], 0
    for each in edits:
        parts += [body[at : each.start], each.text.encode()]
        at = each.end
    return b"".join((*parts, body[at:]))


def _json(value: Any) -> str:
    """As JSON that fits into an HTTP header."""
    text = msgspec.json.encode(value).decode()
    return text if text.isascii() and DELETE not in text else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isascii() and character != DELETE:
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
