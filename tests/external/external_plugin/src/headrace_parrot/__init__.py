"""A plugin as a third party would write it: a backend of its own, a header on every answer, louder streams.

Nothing here knows more of Headrace than its public names.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from headrace import hookimpl
from headrace.config import Strict
from headrace.exchange import Exchange, Reply
from headrace.gateway import Gateway, Register

if os.environ.get("PARROT_TRACE"):
    Path(os.environ["PARROT_TRACE"]).write_text("imported")
if os.environ.get("PARROT_IS_ILL"):
    raise RuntimeError("the parrot is ill")


class ParrotConfig(Strict, frozen=True):
    """`[plugins.parrot]`."""

    loud: bool = False
    """Whether streams leave in capitals."""


class Plugin:
    """Registers the provider `parrot`."""

    Config = ParrotConfig

    def __init__(self, config: ParrotConfig, gateway: Gateway) -> None:
        self._loud = config.loud

    @hookimpl
    def register_providers(self, register: Register) -> None:
        from .provider import Parrot

        register(Parrot())

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        exchange.replace_fields(temperature=0)

    @hookimpl
    async def transform_reply(self, exchange: Exchange, reply: Reply) -> None:
        exchange.response_headers.append((b"x-parrot", b"polly"))

    @hookimpl
    def wrap_stream(self, exchange: Exchange, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes] | None:
        return louder(stream) if self._loud else None


async def louder(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same events with the words in capitals."""
    async for chunk in stream:
        before, text, after = chunk.partition(b'"content":')
        word, quote, rest = after.partition(b"}")
        yield before + text + word.upper() + quote + rest
