"""Requests that go on from an earlier answer are told the whole conversation, so that any backend can answer them."""

from __future__ import annotations

import msgspec

from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.exchange import Exchange, Principal

from .dialect import ResponsesPeek
from .items import REFERENCE, head_of
from .keeping import listed
from .shelf import Shelf
from .store import Entry
from .translation import turn_of


class _Output(msgspec.Struct):
    output: list[msgspec.Raw]


MOST_REFERENCES = 256
"""In one input: each is looked up."""
LONGEST_ID = 256
"""Of an id, so much is repeated in an error."""
_output = msgspec.json.Decoder(_Output).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


async def go_on(exchange: Exchange, shelf: Shelf, most: int) -> None:
    """Put what was said before in front of the request's input, and items in place of references to them.

    Raises:
        InvalidRequest: an answer or an item is not known, or not the caller's.
        PayloadTooLarge: all of it has more than `most` bytes.
        Unavailable: the store cannot be read.
    """
    peek, who = exchange.peek, exchange.principal
    assert isinstance(peek, ResponsesPeek) and who is not None
    previous, items = peek.previous_response_id, _items(peek.input)
    references = _references(items)
    if previous is None and not references:
        return
    if references:
        items = await _resolved(items, references, who, shelf)
    if previous is not None:
        items = [*await _before(previous, who, shelf), *items]
    if sum(memoryview(item).nbytes for item in items) > most:
        raise PayloadTooLarge(f"The conversation is larger than {most} bytes (server.max_body_bytes).", param="input")
    exchange.replace_fields(input=items, previous_response_id=None)
    turn_of(exchange).previous = previous


def _items(given: msgspec.Raw) -> list[msgspec.Raw]:
    """Raises InvalidRequest: it is neither a list nor a text, and too large for the core to have noticed."""
    if bytes(memoryview(given)[:1]) not in (b'"', b"[", b"n"):
        raise InvalidRequest("The field 'input' is neither a text nor a list.", param="input", code="invalid_field")
    return _list(listed(given))


def _references(items: list[msgspec.Raw]) -> dict[int, str]:
    """The ids that stand in place of items, by their places. Raises InvalidRequest."""
    found = {}
    for number, item in enumerate(items):
        try:
            head = head_of(item)
        except msgspec.ValidationError as error:
            raise invalid_field(error, f"input[{number}]") from error
        if head.kind == REFERENCE:
            found[number] = head.id or ""
    if len(found) > MOST_REFERENCES:
        message = f"An input may refer to {MOST_REFERENCES} items; this one does to {len(found)}."
        raise InvalidRequest(message, param="input", code="invalid_value")
    return found


async def _resolved(
    items: list[msgspec.Raw], references: dict[int, str], who: Principal, shelf: Shelf
) -> list[msgspec.Raw]:
    """The items, those that are referred to included."""
    known: dict[str, msgspec.Raw] = {}
    for number, name in references.items():
        if name not in known and (entry := await shelf.owner(who.id, name)) is not None:
            known |= {head_of(each).id or "": each for each in _output(entry.body).output}
        if name not in known:
            message = f"Item with id '{name[:LONGEST_ID]}' not found."
            raise InvalidRequest(message, param=f"input[{number}].id", code="item_not_found")
    return [known[references[number]] if number in references else item for number, item in enumerate(items)]


async def _before(name: str, who: Principal, shelf: Shelf) -> list[msgspec.Raw]:
    entry = await shelf.get(who.id, name)
    if entry is None:
        raise unknown(name)
    return conversation_of(entry)


def conversation_of(entry: Entry) -> list[msgspec.Raw]:
    """What was said, asked and answered."""
    return [*_list(entry.items), *_output(entry.body).output]


def unknown(name: str) -> InvalidRequest:
    """In OpenAI's own words."""
    return InvalidRequest(
        f"Previous response with id '{name[:LONGEST_ID]}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
