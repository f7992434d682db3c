"""What plugins register besides hooks: providers, routing policies, health checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from .config import BackendConfig
from .exchange import Attempt, Exchange, Reply, Target, UpstreamRequest

if TYPE_CHECKING:
    from .dialects import Endpoint


@runtime_checkable
class Provider(Protocol):
    """Speaks one kind of backend. Stateless towards requests: everything about one is in its Attempt."""

    name: str
    endpoints: frozenset[str]
    """Endpoints (`chat`, `completions`, …) that this backend can answer."""
    native: frozenset[str]
    """Those of them that it answers in the client's own dialect, byte for byte: only they can be offloaded."""

    def target(self, name: str, config: BackendConfig) -> Target:
        """Check a backend's configuration and fill in what this provider knows.

        Raises:
            ValueError: with a sentence that says what to change.
        """
        ...

    def build(self, attempt: Attempt) -> UpstreamRequest:
        """What to send to `attempt.target`, which is asked `attempt.asked`. Sync and cheap: no I/O."""
        ...

    async def send(self, attempt: Attempt) -> Reply:
        """Send `attempt.request`; return once the answer's head (of a stream: its first chunk) is here.

        Raises:
            GatewayError: nothing came, or nothing that a client should see.
        """
        ...

    async def models(self, target: Target) -> Sequence[str]:
        """The model names this backend serves. Raises GatewayError."""
        ...


def spoken_by(target: Target, provider: Provider) -> frozenset[str]:
    """Endpoints that a target has itself."""
    return provider.endpoints if target.endpoints is None else target.endpoints & provider.endpoints


def can_answer(endpoint: Endpoint, target: Target, provider: Provider) -> bool:
    """Whether a target answers an endpoint's requests, as they are or translated."""
    spoken = spoken_by(target, provider)
    return endpoint.name in spoken or (endpoint.translation is not None and endpoint.translation.into in spoken)


@runtime_checkable
class CountsPrompts(Protocol):
    """A provider whose backends can say how many tokens a prompt has."""

    async def count_prompt(self, exchange: Exchange, target: Target) -> int:
        """Raises GatewayError."""
        ...


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found."""

    ok: bool
    reason: str = ""
    """Why not, in words an operator can act on; of a backend that is ok, what is odd about it."""
    latency_seconds: float | None = None
    starting: bool = False
    """Not ok yet: it is there, or about to be, and loads its model."""


@runtime_checkable
class HealthCheck(Protocol):
    """Finds out whether a target answers. Registered under its provider's name."""

    async def check(self, target: Target) -> Health:
        """May raise anything: core turns it into `Health(ok=False)`, and stops it at `health.timeout`."""
        ...


@runtime_checkable
class RoutingPolicy(Protocol):
    """Puts a model's targets in the order in which they are asked."""

    name: str

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        """Sync and cheap: it runs once a request."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A routing policy that can say why it orders as it does."""

    def why(self, exchange: Exchange, target: Target) -> str:
        """What counts for or against a target now, in a few words: for `headrace explain`."""
        ...


class InOrder:
    """Core's own policy: as the configuration lists them."""

    name = "in_order"

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        return targets
