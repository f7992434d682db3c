"""Limits and budgets that several gateways share, counted in Redis or Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import RedisConfig

if TYPE_CHECKING:
    from headrace.gateway import Gateway, Register
    from headrace.ledger import Ledger

FALLBACK = "ledger-redis-fallback.mdb"
"""The file in `server.state_dir` in which a gateway counts by itself."""


class Plugin:
    """Brings the ledger `redis`."""

    Config = RedisConfig

    def __init__(self, config: RedisConfig, gateway: Gateway) -> None:
        self.config, self._gateway = config, gateway

    @hookimpl
    def register_ledgers(self, register: Register) -> None:
        from .ledger import RedisLedger

        register(RedisLedger(self.config, self._local), name="redis")

    def _local(self) -> Ledger:
        from headrace.ledger.local import LocalLedger

        gateway = self._gateway
        return LocalLedger(gateway.state_dir / FALLBACK, gateway.worker, gateway.workers)


__all__ = ["Plugin", "RedisConfig"]
