"""Routing to the backend that has a prompt's beginning in its KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace import hookimpl

from . import learning
from .config import PolicyConfig, PrefixConfig
from .known import Backends
from .measures import Measures
from .policy import PrefixPolicy
from .status import Status, TargetStatus, status

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.exchange import Attempt, Exchange, Outcome
    from headrace.gateway import Gateway, Register


class Plugin:
    """Brings the policy `prefix`, and learns from what becomes of the requests that it routes."""

    Config = PrefixConfig

    def __init__(self, config: PrefixConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        self._backends = Backends(config)
        gateway.collectors.append(Measures(self, gateway))
        named = {"prefix": config, **config.policies}
        self._policies = [PrefixPolicy(name, weights, config, self._backends) for name, weights in named.items()]

    @hookimpl
    def register_routing_policies(self, register: Register) -> None:
        for policy in self._policies:
            register(policy)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        if self._config.admin_api:
            gateway.add_route("/admin/prefix", self._show, require="admin", summary="What is taken to be cached where")

    @hookimpl
    def open_tap(self, exchange: Exchange) -> None:
        if self._config.verify and exchange.model is not None and exchange.model.policy in self._policies:
            exchange.usage_wanted = True

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        learning.begin(attempt, self._backends, self._config.block_bytes)

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        learning.end(attempt, outcome, self._backends, self._config.block_bytes)

    def status(self) -> Status:
        """What is taken to be cached where, and how good the predictions were, in this worker."""
        return status(self._gateway.worker, self._backends.all, self._config.block_bytes)

    async def _show(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(msgspec.json.encode(self.status()), media_type="application/json")


__all__ = ["Plugin", "PolicyConfig", "PrefixConfig", "Status", "TargetStatus"]
