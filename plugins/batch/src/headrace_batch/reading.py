"""The chats of a batch, in whichever of four shapes it came.

- `{"requests": [chat, …]}`, and a plain list of chats;
- in both, in place of a chat, a line of OpenAI's Batch API: `{"custom_id", "method", "url", "body"}`
  (https://platform.openai.com/docs/api-reference/batch/request-input);
- vLLM's own: a chat whose `messages` are a list of conversations
  (https://docs.vllm.ai/en/stable/api/vllm/entrypoints/openai/chat_completion/protocol/, BatchChatCompletionRequest).
"""

from __future__ import annotations

import msgspec

from headrace.edits import merge_fields
from headrace.errors import GatewayError, InvalidRequest

CHAT = "/v1/chat/completions"
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_ABSENT = msgspec.Raw(b"null")
TRUE = b"true"


class Item(msgspec.Struct):
    """One chat of a batch. `error` says why it cannot be asked at all."""

    custom_id: str
    body: bytes = b""
    error: GatewayError | None = None


def read(body: bytes, most: int) -> list[Item]:
    """The chats, in their order.

    Raises:
        InvalidRequest: there are none, or more than `most`.
    """
    try:
        raws = _chats(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not a batch: {error}.", code="invalid_json") from error
    if not raws:
        raise InvalidRequest("The batch is empty.", param="requests", code="invalid_value")
    if len(raws) > most:
        message = f"The batch has {len(raws)} chats; {most} are allowed (plugins.batch.max_items)."
        raise InvalidRequest(message, param="requests", code="batch_too_large")
    return [_item(raw, number) for number, raw in enumerate(raws)]


def _chats(body: bytes) -> list[msgspec.Raw]:
    body.decode()  # a batch that is no UTF-8 is none of it
    if body.lstrip()[:1] == b"[":
        return _list(body)
    fields = _fields(body)
    if "requests" in fields:
        return _list(fields["requests"])
    if "messages" in fields:
        return _conversations(fields)
    raise InvalidRequest(
        'A batch is {"requests": [...]}, a list, or a chat with a list of conversations.',
        param="requests",
        code="missing_field",
    )


def _conversations(fields: dict[str, msgspec.Raw]) -> list[msgspec.Raw]:
    """vLLM's shape: what is not `messages` is the same in every chat."""
    if bytes(fields.get("stream", _ABSENT)) == TRUE:
        raise unstreamed()
    conversations = _list(fields["messages"])
    if any(bytes(memoryview(each)[:1]) != b"[" for each in conversations):
        message = "The messages of a batch are a list of conversations, each a list of messages."
        raise InvalidRequest(message, param="messages", code="invalid_field")
    return [msgspec.Raw(merge_fields(fields, {"messages": each})) for each in conversations]


def _item(raw: msgspec.Raw, number: int) -> Item:
    """What is wrong with one is no matter of the others."""
    try:
        return _read_item(raw, number)
    except GatewayError as error:
        return Item(str(number), error=error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Item(str(number), error=InvalidRequest(f"This is not a chat: {error}.", code="invalid_json"))


def _read_item(raw: msgspec.Raw, number: int) -> Item:
    fields, body = _fields(raw), bytes(raw)
    item = Item(str(number))
    if "custom_id" in fields:
        item.custom_id = _text(fields["custom_id"])
        body = merge_fields(fields, {"custom_id": None})
    if "body" in fields and "messages" not in fields:
        item.error = _not_a_chats(fields)
        body, fields = bytes(fields["body"]), {}
        fields = _fields(body) if item.error is None else {}
    if bytes(fields.get("stream", _ABSENT)) == TRUE:
        item.error = unstreamed()
    item.body = body
    return item


def _not_a_chats(line: dict[str, msgspec.Raw]) -> GatewayError | None:
    """Why a line of OpenAI's Batch API cannot be asked here."""
    for name, wanted in (("method", "POST"), ("url", CHAT)):
        if name in line and _text(line[name]) != wanted:
            return InvalidRequest(f"Each request of this batch is a {wanted}.", param=name, code="invalid_value")
    return None


def unstreamed() -> InvalidRequest:
    return InvalidRequest("Answers of a batch are not streamed: leave 'stream' out.", param="stream")
