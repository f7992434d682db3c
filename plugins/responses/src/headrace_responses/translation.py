"""Answering the Responses API from backends that have chats."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headrace.chat import Completion
from headrace.errors import InvalidRequest, UpstreamError
from headrace.exchange import Exchange
from headrace.translation import StreamTranslation

from . import shape
from .asked import Asked, as_chat, read
from .dialect import NAME
from .stream import Stream

_encode = msgspec.json.Encoder().encode


class Turn(msgspec.Struct):
    """What belongs to one request: stands in `exchange.state`."""

    previous: str | None = None
    """The answer that it goes on from."""
    asked: Asked | None = None


def turn_of(exchange: Exchange) -> Turn:
    turn: Turn = exchange.state.setdefault(NAME, Turn())
    return turn


class Translation:
    """See `headrace.translation.Translation`.

    Args:
        keeps: whether an answer to this request will be kept.
    """

    into = "chat"

    def __init__(self, keeps: Callable[[Exchange], bool]) -> None:
        self._keeps = keeps

    def request(self, exchange: Exchange) -> tuple[bytes, tuple[str, ...]]:
        try:
            asked = turn_of(exchange).asked = read(exchange)
            return as_chat(asked, exchange)
        except RecursionError as error:
            raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from error

    def answer(self, completion: Completion, exchange: Exchange) -> bytes:
        if not completion.choices:
            raise UpstreamError("The backend's answer is empty.")
        choice = completion.choices[0]
        response = self._begin(exchange, completion.model)
        status = shape.finish(response, choice.finish_reason, completion.usage)
        response.output = shape.items_of(choice.message, choice.logprobs, status)
        return _encode(response)

    def stream(self, exchange: Exchange) -> StreamTranslation:
        return Stream(lambda model: self._begin(exchange, model))

    def _begin(self, exchange: Exchange, model: str) -> shape.Response:
        turn = turn_of(exchange)
        assert turn.asked is not None
        return shape.begun(turn.asked, exchange, model, turn.previous, stored=self._keeps(exchange))
