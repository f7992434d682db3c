"""API keys: hashed at rest, created, changed and revoked without a restart."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import msgspec

from headrace import hookimpl
from headrace.config import Secret, Strict

from .place import is_postgres, is_url, postgres_place

if TYPE_CHECKING:
    import click

    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway

    from .mirror import Mirror
    from .refresh import Watch
    from .store import Place


class KeysConfig(Strict, frozen=True):
    """`[plugins.keys]`: where keys are kept, and how soon a change is noticed."""

    database: Secret | None = None
    """A SQLite file on a local disk, `keys.db` if left out (a relative path starts at `server.state_dir`); or
    `postgresql://USER@HOST/DATABASE`. Treated as a secret, for such a URL may have a password in it."""
    refresh_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 0.5
    """How soon a running gateway sees changes that another process made: so long after it last looked, the next request
    looks first (a server is asked so often whether there are requests or not)."""
    development_key: bool = False
    """Keep a key named `development` (role `admin`) whose plaintext lies in `state_dir/development.key`.
    For trying things out on one's own machine; while this is false, such a key is not accepted."""
    admin_api: bool = False
    """Serve `/admin/keys`, where keys with the role `admin` manage keys over HTTP."""
    failures_per_minute: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 20
    """Wrong keys of one address in a minute that are answered 401, by each worker; further wrong ones are answered
    429. Right keys work all the same. 0: always 401."""

    def __post_init__(self) -> None:
        if self.database is None:
            return
        place = self.database.reveal().strip()
        if not place or "\0" in place:
            raise ValueError("database: is empty, or no path")
        if is_postgres(place):
            self._check_server(place)
        elif is_url(place):  # its password must not be shown as part of a path
            raise ValueError("database: is neither a file nor postgresql://USER@HOST/DATABASE")

    def _check_server(self, url: str) -> None:
        try:
            postgres_place(url)
        except ValueError as error:
            raise ValueError(f"database: {error}") from None
        if self.development_key:  # its plaintext lies in a file of one machine: several would revoke each other's
            raise ValueError("development_key: is for a database in a file, not on a server")


class Plugin:
    """Knows callers by their API key."""

    Config = KeysConfig

    def __init__(self, config: KeysConfig, gateway: Gateway) -> None:
        from .failures import Failures
        from .ring import KeyRing, WrongKey

        self.config = config
        self._gateway = gateway
        self._wrong = WrongKey
        self.ring = KeyRing()
        self.mirror: Mirror | None = None
        """What keeps `ring` like the database, while the gateway runs."""
        self.failures = Failures(config.failures_per_minute)
        self.watch: Watch | None = None
        """What says when to look for changes, while the gateway runs."""

    @property
    def neighbours(self) -> Collection[str]:
        """The names of all plugins of this gateway."""
        return self._gateway.plugins.keys()

    @property
    def database(self) -> Place:
        """Where the keys are kept."""
        place = self.config.database.reveal().strip() if self.config.database else "keys.db"
        return postgres_place(place) if is_postgres(place) else self._gateway.state_dir / Path(place).expanduser()

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        watch = self.watch
        if watch is not None and monotonic() >= watch.due:
            await watch.look()
        try:
            return self.ring.authenticate(exchange.headers)
        except self._wrong as error:
            raise self.failures.answer(exchange.client, error) from None

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        from .refresh import refreshing

        return refreshing(self)

    @hookimpl
    def announce(self, gateway: Gateway) -> dict[str, str] | None:
        key = self.ensure_development_key()
        return {"key": key} if key else None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        if self.config.admin_api:
            from .api import AdminAPI

            AdminAPI(self, gateway).register()

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from . import gitops_commands  # noqa: F401 - adds to them
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
