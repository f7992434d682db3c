"""`POST /v1/messages/count_tokens` for models whose backends do not count by themselves.

A request to count is no chat, so that it cannot be translated into one: it is answered before any backend is asked, in
the place where a cache would answer, once the caller is known and admitted.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import msgspec

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Reply
from headrace.providers import spoken_by

from . import telling
from .asking import as_chat

if TYPE_CHECKING:
    from headrace.exchange import Exchange
    from headrace.gateway import Gateway

NAME = "count_tokens"
ESTIMATED = b"x-headrace-estimated"
CHAT = OPENAI_ENDPOINTS["/v1/chat/completions"]


async def count(exchange: Exchange, gateway: Gateway, *, effort: bool) -> Reply | None:
    """The answer; None if a backend of the model counts by itself.

    Raises:
        InvalidRequest: the request could not be asked of these backends, either.
    """
    assert exchange.model is not None
    if any(NAME in spoken_by(each, gateway.providers[each.provider]) for each in exchange.model.targets):
        return None
    asked = _as_chat(exchange, effort)
    await gateway.estimator.count(asked, gateway)
    if asked.prompt_tokens is None:
        exchange.response_headers.append((ESTIMATED, b"true"))
    tokens = gateway.estimator.prompt(exchange if asked.prompt_tokens is None else asked)
    telling.name(exchange)
    body = msgspec.json.encode({"input_tokens": tokens})
    return Reply(200, [(b"content-type", b"application/json")], content=body, source="gateway")


def _as_chat(exchange: Exchange, effort: bool) -> Exchange:
    body, dropped = as_chat(exchange.body, effort=effort)
    exchange.dropped = dropped
    asked = copy(exchange)
    asked.endpoint, asked.prompt_tokens = CHAT, None
    asked.take_body(body)
    return asked
