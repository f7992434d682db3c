"""API keys: hashed at rest, created and revoked without a restart."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from headrace import hookimpl
from headrace.config import Strict

if TYPE_CHECKING:
    import click

    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway


class KeysConfig(Strict, frozen=True):
    """`[plugins.keys]`: where keys are kept, and how soon a change is noticed."""

    database: Annotated[str, msgspec.Meta(min_length=1)] = "keys.db"
    """The SQLite file with the hashed keys, on a local disk; a relative path starts at `server.state_dir`."""
    refresh_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 0.5
    """How often a running gateway looks for keys that another process created or revoked."""
    development_key: bool = False
    """Keep a key named `development` (role `admin`) whose plaintext lies in `state_dir/development.key`.
    For trying things out on one's own machine; while this is false, such a key is not accepted."""


class Plugin:
    """Knows callers by their API key."""

    Config = KeysConfig

    def __init__(self, config: KeysConfig, gateway: Gateway) -> None:
        from .ring import KeyRing

        self.config = config
        self._gateway = gateway
        self.ring = KeyRing()

    @property
    def database(self) -> Path:
        """Where the keys are kept."""
        return self._gateway.state_dir / Path(self.config.database).expanduser()

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        return self.ring.authenticate(exchange.headers)

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        from .refresh import refreshing

        return refreshing(self)

    @hookimpl
    def announce(self, gateway: Gateway) -> dict[str, str] | None:
        key = self.ensure_development_key()
        return {"key": key} if key else None

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import keys

        cli.add_command(keys)

    def ensure_development_key(self) -> str | None:
        """The development key, made if there is none that works; None unless `development_key` is true.

        Blocks on the disk; any number of processes may do it at once and all get the same key. Raises PluginError.
        """
        if not self.config.development_key:
            return None
        from .development import ensure

        self._gateway.make_dirs()
        return ensure(self.database, self._gateway.state_dir / "development.key")


__all__ = ["KeysConfig", "Plugin"]
