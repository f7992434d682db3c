"""One key as it is kept: everything but the secret."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.exchange import Role

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

    @property
    def allowed(self) -> frozenset[str] | None:
        return None if self.models is None else frozenset(self.models)

    def state(self, now: float, *, development: bool) -> State:
        """What a request with this key would meet; `development` as in the configuration."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "active" if development or not self.development else "off"

    def __repr__(self) -> str:
        return f"Record({self.id}, {self.name!r})"
