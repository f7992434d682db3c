"""Messages requests for backends that have chats alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.chat import Completion

from . import telling
from .asking import as_chat
from .streaming import MessageStream

if TYPE_CHECKING:
    from headrace.exchange import Exchange


class MessagesTranslation:
    """See `headrace.translation.Translation`.

    Args:
        effort: whether backends may be told how much to think.
    """

    into = "chat"

    def __init__(self, *, effort: bool = True) -> None:
        self._effort = effort

    def request(self, exchange: Exchange) -> tuple[bytes, tuple[str, ...]]:
        """Raises InvalidRequest."""
        return as_chat(exchange.body, effort=self._effort)

    def answer(self, completion: Completion, exchange: Exchange) -> bytes:
        """Raises UpstreamError."""
        return telling.whole(completion, exchange)

    def stream(self, exchange: Exchange) -> MessageStream:
        return MessageStream(exchange)
