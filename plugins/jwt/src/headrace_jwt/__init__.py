"""Callers known by the JSON Web Tokens of your identity provider."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import Unauthenticated

from .config import JwtConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway

logger = logging.getLogger("headrace.jwt")

CODE = "invalid_token"
CHALLENGE = {"WWW-Authenticate": f'Bearer error="{CODE}"'}
"""What RFC 6750, section 3.1, wants said about a token that is refused."""


class Plugin:
    """Knows callers by their JSON Web Token."""

    Config = JwtConfig

    def __init__(self, config: JwtConfig, gateway: Gateway) -> None:
        from .authenticator import Authenticator

        self.config = config
        self.authenticator = Authenticator(config)

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        from .token import Refused

        try:
            return await self.authenticator.authenticate(exchange.headers)
        except Refused as refused:
            logger.debug("request %s: the token was refused: %s", exchange.id, refused.why)
            raise Unauthenticated(refused.message, code=CODE, headers=CHALLENGE) from None

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        from .sources import opened

        return opened(self.authenticator, gateway)


__all__ = ["JwtConfig", "Plugin"]
