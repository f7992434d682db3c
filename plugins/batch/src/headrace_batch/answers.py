"""What is answered: for each item an object as OpenAI's Batch API has them, in the order of the items
(https://platform.openai.com/docs/api-reference/batch/request-output)."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.errors import GatewayError, error_object

from .inside import Answer
from .reading import Item

_raw = msgspec.json.Decoder(msgspec.Raw).decode


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: Any


class Failure(msgspec.Struct):
    """Why there is no response."""

    code: str
    message: str


class Line(msgspec.Struct):
    id: str
    custom_id: str
    response: Response | None = None
    error: Failure | None = None

    @property
    def completed(self) -> bool:
        return self.response is not None and self.response.status_code < 400


class Counts(msgspec.Struct):
    total: int
    completed: int
    failed: int


class Batch(msgspec.Struct):
    id: str
    data: list[Line]
    request_counts: Counts
    object: str = "list"


EXPIRED = Failure("batch_expired", "The batch's time was over before this request was answered.")
TOO_LARGE = "The answer is larger than {} bytes (plugins.batch.max_reply_bytes)."
BROKEN = Failure("incomplete_answer", "The answer broke off.")


def refused(item: Item, request_id: str, error: GatewayError) -> Line:
    """An item that was not asked at all: the same answer as if it had been."""
    return Line(request_id, item.custom_id, Response(error.status, request_id, {"error": error_object(error)}))


def failed(item: Item, request_id: str, why: Failure) -> Line:
    return Line(request_id, item.custom_id, error=why)


def answered(item: Item, request_id: str, answer: Answer, most: int, *, expired: bool) -> Line:
    """What came of an item."""
    if answer.too_large:
        return failed(item, request_id, Failure("answer_too_large", TOO_LARGE.format(most)))
    if answer.status is None or not answer.whole:
        return failed(item, request_id, EXPIRED if expired else BROKEN)
    return Line(request_id, item.custom_id, Response(answer.status, request_id, _body(bytes(answer.body))))


def _body(data: bytes) -> Any:
    """As it came; as a text, if it is no JSON."""
    try:
        data.decode()
        return _raw(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.decode("utf-8", "replace")


def batch(identifier: str, lines: list[Line]) -> bytes:
    """The whole answer."""
    completed = sum(line.completed for line in lines)
    counts = Counts(len(lines), completed, len(lines) - completed)
    return msgspec.json.encode(Batch(identifier, lines, counts))
