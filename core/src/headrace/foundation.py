"""What a process has once, whichever configuration it runs: nginx's reports, the local ledger, the counts of the fleet.

A gateway that takes over from another in the same process uses the same; the last one to end closes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .fleet import Fleet

if TYPE_CHECKING:
    from .gateway import Gateway
    from .ledger.local import LocalLedger
    from .reporting import Reporting


class Foundation:
    """Made without I/O by the first gateway of a process."""

    def __init__(self, gateway: Gateway) -> None:
        self._runtime_dir, self._state_dir = gateway.runtime_dir, gateway.state_dir
        self._worker, self._workers = gateway.worker, gateway.workers
        self._reporting: Reporting | None = None
        self._ledger: LocalLedger | None = None
        self._fleet = Fleet(self._runtime_dir, self._worker, self._workers)
        self._users = 0
        self._open = contextlib.AsyncExitStack()
        self._counting = False

    @property
    def ledger(self) -> LocalLedger:
        """Open while a gateway that counts with it is at work."""
        from .ledger.local import FILE, LocalLedger

        if self._ledger is None:
            self._ledger = LocalLedger(self._state_dir / FILE, self._worker, self._workers)
        return self._ledger

    @property
    def reporting(self) -> Reporting:
        """Open while a gateway is at work."""
        from .reporting import Reporting

        if self._reporting is None:
            self._reporting = Reporting(self._runtime_dir, self._worker)
        return self._reporting

    @contextlib.asynccontextmanager
    async def used(self, gateway: Gateway) -> AsyncIterator[None]:
        """For as long as a gateway is at work."""
        self._users += 1
        try:
            await self._opened(gateway)
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._counting = False
                await self._open.aclose()

    def serve(self, gateway: Gateway) -> None:
        """From now on it is this gateway that answers."""
        self._fleet.open(gateway.models.targets)
        self.reporting.timeout = gateway.config.server.report_timeout

    async def _opened(self, gateway: Gateway) -> None:
        if self._users == 1:
            if self._worker == 0:
                self._fleet.tidy()
            self.serve(gateway)
            self.reporting.open()
            self._open.callback(self.reporting.close)
        if gateway.counts and gateway.ledger is self.ledger and not self._counting:
            await self._open.enter_async_context(self.ledger.running())
            self._counting = True
