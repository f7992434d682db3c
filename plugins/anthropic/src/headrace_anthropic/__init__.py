"""Anthropic's Messages API: the dialect, for clients that speak it, and the provider, for backends that do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import AnthropicConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Reply
    from headrace.gateway import Gateway, Register


class Plugin:
    """Registers `/v1/messages`, `/v1/messages/count_tokens`, and the provider `anthropic`."""

    Config = AnthropicConfig

    def __init__(self, config: AnthropicConfig, gateway: Gateway) -> None:
        self.config = config
        self._gateway = gateway

    @hookimpl
    def register_dialects(self, register: Register) -> None:
        from headrace.dialects import Endpoint

        from . import counting
        from .dialect import DIALECT, CountDialect, CountPeek, MessagesPeek
        from .translation import MessagesTranslation

        path = "/v1/messages"
        translation = MessagesTranslation(effort=self.config.reasoning_effort)
        register(Endpoint("messages", path, MessagesPeek, DIALECT, "Answer a conversation (Anthropic)", translation))
        counted = f"{path}/count_tokens"
        register(Endpoint(counting.NAME, counted, CountPeek, CountDialect(), "Count a prompt's tokens (Anthropic)"))

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import AnthropicProvider

        register(AnthropicProvider(self._gateway))

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        if exchange.endpoint.name != "count_tokens":
            return None
        from .counting import count

        return await count(exchange, self._gateway, effort=self.config.reasoning_effort)


__all__: Sequence[str] = ["AnthropicConfig", "Plugin"]
