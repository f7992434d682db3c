"""From a request's headers to its caller: the token, its signature, its claims, and a memory of all that."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import msgspec

from headrace.errors import Unavailable
from headrace.exchange import Headers, Principal

from .claims import ClaimRules
from .config import JwtConfig
from .token import Refused, Token, claims_of, find, shown, take_apart

if TYPE_CHECKING:
    from .keyset import KeySet


class Source(Protocol):
    """Where keys come from."""

    def current(self) -> KeySet:
        """The keys that are valid now. Raises Unavailable if there are none."""

    async def with_key(self, kid: str | None) -> KeySet:
        """The keys that are valid now, after looking for `kid` if it is not among them. Raises Unavailable."""


class Authenticator:
    """Knows callers by their tokens. `source` is set before the first request, `forget` called when it changes."""

    def __init__(self, config: JwtConfig) -> None:
        self.config = config
        self.source: Source | None = None
        self._algorithms = frozenset[str](config.algorithms)
        self._types = frozenset(_kind(each) for each in config.types)
        self._rules = ClaimRules(config)
        self._known = TokenCache(config.cache_size)

    def forget(self) -> None:
        """The keys are others now: every token must be checked again."""
        self._known.clear()

    async def authenticate(self, headers: Headers) -> Principal | None:
        """Who sent these headers; None if they hold no token.

        Raises:
            Refused: a token that is not accepted.
            Unavailable: there are no keys to check it with.
        """
        token = find(headers)
        if token is None:
            return None
        source = self.source
        if source is None:
            raise Unavailable("The gateway is starting: try again.", headers={"Retry-After": "1"})
        digest = sha256(token).digest()
        principal = self._known.get(digest, time.time())
        if principal is not None:
            source.current()  # a token that was verified once is worth no more than the keys
            return principal
        parts = take_apart(token)
        self._check_header(parts)
        return self._verified(parts, await source.with_key(parts.header.kid), digest)

    def _check_header(self, token: Token) -> None:
        header = token.header
        if header.alg not in self._algorithms:
            raise Refused(
                "The token is signed in a way that this gateway does not accept: ask its issuer for another.",
                f"alg is {shown(header.alg)}",
            )
        if header.crit is not msgspec.UNSET:
            raise Refused("The token needs extensions that this gateway does not know.", "it has the header crit")
        if header.typ is not None and _kind(header.typ) not in self._types:
            raise Refused(
                "The token is of a kind that is not for access: get an access token.", f"typ is {shown(header.typ)}"
            )

    def _verified(self, token: Token, keys: KeySet, digest: bytes) -> Principal:
        """Nothing in here waits: the keys cannot change between the check and the memory of it."""
        header = token.header
        if not keys.knows(header.kid):
            raise Refused(
                "The token is signed with a key that this gateway does not know: get a new one, or try again in a "
                "few seconds.",
                f"no key {shown(header.kid)}",
            )
        candidates = keys.candidates(header.alg, header.kid)
        if not any(key.verifies(header.alg, token.signed, token.signature) for key in candidates):
            raise Refused(
                "The token's signature is not right: get a new one, and copy it whole.",
                f"{len(candidates)} keys tried for {header.alg}, kid {shown(header.kid)}",
            )
        claims = claims_of(token.payload)
        until = self._rules.check(claims, time.time())
        principal = self._rules.principal(claims)
        self._known.put(digest, principal, until)
        return principal


class TokenCache:
    """Callers by the hash of a token that was verified; the ones not seen for longest make place for new ones."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[bytes, tuple[Principal, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes, now: float) -> Principal | None:
        """Whose token it is, if it is known and still valid at `now`, in seconds since the epoch."""
        entry = self._entries.pop(digest, None)
        if entry is None or entry[1] <= now:
            return None
        self._entries[digest] = entry  # a dict keeps the order in which things were put in
        return entry[0]

    def put(self, digest: bytes, principal: Principal, until: float) -> None:
        if self._size == 0:
            return
        if len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = (principal, until)

    def clear(self) -> None:
        self._entries.clear()


def _kind(typ: str) -> str:
    """A media type as RFC 7515, section 4.1.9, compares it."""
    return typ.lower().removeprefix("application/")
