"""One structured line per request, without prompts, answers or keys."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import LogsConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Outcome
    from headrace.gateway import Gateway
    from headrace.streaming import Tap

    from .audit import AuditFile
    from .bodies import Selection
    from .journal import Journal

logger = logging.getLogger("headrace.logs")

STATE = "logs"
"""The name under which an exchange keeps our tap."""


class Plugin:
    """Writes the line of every request, and gives the gateway's own messages the same form."""

    Config = LogsConfig

    def __init__(self, config: LogsConfig, gateway: Gateway) -> None:
        self._config = config
        self._gateway = gateway
        gateway.usage_wanted |= config.usage
        self._journal: Journal | None = None
        self._bodies: Selection | None = None
        if config.bodies:
            from .bodies import Selection

            self._bodies = Selection(config)
        self._audit: AuditFile | None = None
        if config.audit_file is not None:
            from .audit import AuditFile

            self._audit = AuditFile(config, gateway)
            gateway.auditors.append(self._audit)

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        from .journal import Journal, refusal

        gateway = self._gateway
        if self._audit is not None and not gateway.looking:
            with refusal("audit_file", self._audit.path):
                self._audit.check()
        worker = gateway.worker if gateway.config.server.workers > 1 else None
        async with Journal(self._config, gateway.state_dir, worker) as journal:
            self._journal = journal
            self._mention_unknown()
            yield

    def _mention_unknown(self) -> None:
        """It is no error: a model may be found while the gateway runs."""
        known = {model.name for model in self._gateway.models}
        for name in sorted({*(self._config.bodies_models or ())} - known):
            logger.warning("bodies_models: no model is called %r, at least not yet", name)

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Tap | None:
        if self._bodies is None or not self._bodies.answers or not self._bodies.has(exchange):
            return None
        from .bodies import AnswerTap

        tap = exchange.state[STATE] = AnswerTap(self._config.max_body_bytes)
        return tap

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        if self._journal is None:
            raise RuntimeError("a request ended before the gateway's lifespan was entered: use gateway.running()")
        self._journal.request(exchange, outcome)


__all__: Sequence[str] = ["LogsConfig", "Plugin"]
