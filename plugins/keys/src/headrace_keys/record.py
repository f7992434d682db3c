"""One key as it is kept: everything but the secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from headrace.exchange import Principal, Role
from headrace.limits import Budget, RateLimits

State = Literal["active", "expired", "revoked", "off"]
"""`off`: a development key while `development_key` is false."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the database. Times are seconds since the epoch."""

    id: str
    name: str
    role: Role
    models: tuple[str, ...] | None
    """None: every model."""
    salt: bytes
    digest: bytes
    created: float
    expires: float | None = None
    revoked: float | None = None
    development: bool = False
    owner: str | None = None
    team: str | None = None
    endpoints: tuple[str, ...] | None = None
    """None: every endpoint."""
    limits: RateLimits | None = None
    budget: Budget | None = None
    metadata: dict[str, Any] = {}
    former_salt: bytes | None = None
    """Of the secret before the last rotation."""
    former_digest: bytes | None = None
    former_until: float | None = None
    """Until when the secret before is valid; None: it is not."""

    @property
    def allowed(self) -> frozenset[str] | None:
        """The models of this key."""
        return None if self.models is None else frozenset(self.models)

    @property
    def principal(self) -> Principal:
        """Who asks with this key."""
        return Principal(
            id=self.id,
            name=self.name,
            role=self.role,
            owner=self.owner,
            team=self.team,
            models=self.allowed,
            endpoints=None if self.endpoints is None else frozenset(self.endpoints),
            limits=self.limits,
            budget=self.budget,
            metadata=self.metadata,
        )

    def state(self, now: float, *, development: bool) -> State:
        """What a request with this key would meet; `development` as in the configuration."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "active" if development or not self.development else "off"

    def former_counts(self, now: float) -> bool:
        """Whether the secret before the last rotation is still valid."""
        return self.former_until is not None and self.former_until > now and self.revoked is None

    def __repr__(self) -> str:
        return f"Record({self.id}, {self.name!r})"


def described(record: Record, now: float, *, development: bool) -> dict[str, Any]:
    """A key as JSON shows it, on the command line and in the API: all but hashes; times in ISO 8601, UTC."""
    return {
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "owner": record.owner,
        "team": record.team,
        "models": None if record.models is None else list(record.models),
        "endpoints": None if record.endpoints is None else list(record.endpoints),
        "limits": None if record.limits is None else msgspec.to_builtins(record.limits),
        "budget": None if record.budget is None else msgspec.to_builtins(record.budget),
        "metadata": record.metadata,
        "created": moment(record.created),
        "expires": moment(record.expires),
        "revoked": moment(record.revoked),
        "former_until": moment(record.former_until) if record.former_counts(now) else None,
        "state": record.state(now, development=development),
    }


def moment(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
