"""Opening the place where the keys come from, for as long as the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import PluginError

from . import keyset
from .keyset import KeySet

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from .authenticator import Authenticator
    from .config import JwtConfig


class FixedKeys:
    """Keys from the configuration: always there, never others."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def current(self) -> KeySet:
        return self._keys

    async def with_key(self, kid: str | None) -> KeySet:
        return self._keys


@contextlib.asynccontextmanager
async def opened(authenticator: Authenticator, gateway: Gateway) -> AsyncIterator[None]:
    """Give the authenticator its keys until the context is left.

    Raises:
        PluginError: `public_key` cannot be used. A `jwks_url` that does not answer is only logged.
    """
    config = authenticator.config
    if config.jwks_url is None:
        authenticator.source = FixedKeys(await asyncio.to_thread(_configured, config))
        yield
        return
    from .fetch import Fetcher
    from .jwks import PublishedKeys

    keys = PublishedKeys(config, Fetcher(config, gateway.upstream).fetch, authenticator.forget)
    authenticator.source = keys
    async with keys.refreshed():
        yield


def _configured(config: JwtConfig) -> KeySet:
    if config.secret is not None:
        return keyset.from_secret(config.secret.reveal(), config.algorithms)
    assert config.public_key is not None
    given = config.public_key
    is_text = "-----BEGIN" in given
    try:
        pem = given.encode() if is_text else Path(given).expanduser().read_bytes()
        return keyset.from_pem(pem, config.algorithms)
    except (OSError, ValueError, RuntimeError) as error:  # not there, no key or no path, no such user
        where = "" if is_text else f" {given}"
        what = error.strerror if isinstance(error, OSError) else error
        raise PluginError("jwt", f"public_key{where}: {what}") from error
