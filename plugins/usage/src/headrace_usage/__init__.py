"""A ledger of every request: who asked for what, what it took, what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import PriceConfig, UsageConfig, milliseconds
from .place import is_postgres, postgres_place

if TYPE_CHECKING:
    import click

    from headrace.exchange import Attempt, Exchange, Outcome
    from headrace.gateway import Gateway

    from .recorder import Recorder
    from .store import Place, Store

logger = logging.getLogger("headrace.usage")

STATE = "usage"
"""The name under which an exchange keeps its failed tries."""
WRITER_WAIT_SECONDS = 0.4
"""How long the writer waits for the database before rows are put aside: they are never in memory alone for long."""


class Plugin:
    """Notes every request when it ends; a thread writes what was noted."""

    Config = UsageConfig

    def __init__(self, config: UsageConfig, gateway: Gateway) -> None:
        from .entry import Book, Failed, Pending
        from .money import Prices
        from .recorder import Recorder
        from .retention import Retention
        from .spool import Spool

        self.config = config
        self._gateway = gateway
        gateway.usage_wanted = True
        self._prices = Prices(config.prices)
        self._pending, self._failed = Pending, Failed
        writer = secrets.randbits(63)
        spool = Spool(gateway.state_dir / "usage-spool", config.spool_bytes, writer)
        retention = Retention(milliseconds(config.retention), milliseconds(config.summary_retention))
        self._recorder = Recorder(
            Book(writer, self._prices, addresses=config.addresses),
            self._open,
            spool,
            config.queue_rows,
            lambda store: retention.due(store) if gateway.worker == 0 else None,
        )

    @property
    def database(self) -> Place:
        """Where the ledger is."""
        place = self.config.database.reveal().strip() if self.config.database else "usage.db"
        return postgres_place(place) if is_postgres(place) else self._gateway.state_dir / Path(place).expanduser()

    @property
    def recorder(self) -> Recorder:
        """What writes."""
        return self._recorder

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        error = outcome.error
        if outcome.aborted or (outcome.completed and error is None):
            return
        failed = self._failed(
            attempt.number,
            attempt.model.name if attempt.model is not None else "",
            attempt.target.name,
            outcome.status,
            (error.code or error.type) if error is not None else "",
            outcome.duration_seconds,
            outcome.ttft_seconds,
        )
        attempt.exchange.state.setdefault(STATE, []).append(failed)

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        principal, error, attempts = exchange.principal, outcome.error, exchange.attempts
        if principal is None and not self.config.strangers:
            return
        last = attempts[-1] if attempts else None
        usage = outcome.usage if last is not None else None
        answered = last is not None and last.reporting is None and (exchange.status or 0) < 400
        if answered and usage is None:
            usage = exchange.estimate(0)
        self._recorder.add(
            self._pending(
                time.time(),
                exchange.id,
                principal,
                exchange.model,
                exchange.peek.model if exchange.peek is not None else None,
                last.model if last is not None else None,
                exchange.endpoint.name,
                exchange.client,
                exchange.streaming,
                outcome.status,
                outcome.completed,
                outcome.aborted,
                (error.code or error.type) if error is not None else None,
                outcome.target,
                outcome.delivery if outcome.delivery_reason else "",
                usage,
                answered,
                outcome.duration_seconds,
                outcome.ttft_seconds,
                exchange.state.get(STATE),
            )
        )

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None] | None:
        return None if gateway.looking else self._running()

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Raises PluginError: the database cannot be used, and that will stay so."""
        recorder = self._recorder
        recorder.start(await asyncio.to_thread(self._first_store))
        try:
            yield
        finally:
            await asyncio.to_thread(recorder.stop)

    def _open(self) -> Store:
        from .store import Store

        return Store.open(self.database, WRITER_WAIT_SECONDS)

    def _first_store(self) -> Store | None:
        """What is out of reach, or locked, does not keep the gateway from starting; a path that is wrong does."""
        from .store import NotNow

        place = self.database
        try:
            return self._open()
        except NotNow as error:
            if isinstance(place, Path) and not os.access(place if place.exists() else place.parent, os.W_OK):
                raise
            logger.error("the usage ledger cannot be written yet, rows are put aside until it can: %s", error)
            return None

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        from headrace.errors import ConfigError, Problem

        models = list(gateway.models)
        known = f"(there are: {', '.join(model.name for model in models) or 'none'})"
        found = [
            Problem(f"{gateway.source}: [plugins.usage] prices", f"{name!r} is no model, and no MODEL@TARGET {known}")
            for name in self._prices.unknown(models)
        ]
        if found:
            raise ConfigError(found)
        if self.config.admin_api:
            from .api import AdminAPI

            AdminAPI(self).register(gateway)

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import usage

        cli.add_command(usage)


__all__ = ["Plugin", "PriceConfig", "UsageConfig"]
