"""The keys in memory: who sent this request? No I/O, one hash, about two microseconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from hmac import compare_digest

import msgspec

from headrace.errors import Unauthenticated
from headrace.exchange import Headers, Principal

from .keyformat import PATTERN, PREFIX, SECRET_LENGTH, digest, new_salt
from .record import Record


class WrongKey(Unauthenticated):
    """A key that is nobody's: perhaps somebody is guessing."""


class Former(msgspec.Struct, frozen=True):
    """The secret that a key had before its last rotation."""

    salt: bytes
    digest: bytes
    until: float
    """Seconds since the epoch."""

    def __repr__(self) -> str:
        return f"Former(until {self.until})"


class Entry(msgspec.Struct, frozen=True):
    """What is needed to check one key."""

    principal: Principal
    salt: bytes
    digest: bytes
    expires: float
    """Seconds since the epoch; infinity if never."""
    revoked: bool
    former: Former | None = None

    def __repr__(self) -> str:
        return f"Entry({self.principal.id})"


class KeyRing:
    """Every key by its id. `replace` swaps the whole table at once; readers never see half of one."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        salt = new_salt()
        nothing = digest(b"-" * SECRET_LENGTH, salt)  # of no secret there can be: none has hyphens
        self._no_former = Former(salt, nothing, 0.0)
        self._nobody = Entry(Principal(id="nobody"), salt, nothing, 0.0, True)

    def __len__(self) -> int:
        return len(self._entries)

    def principals(self) -> Iterator[Principal]:
        """Everybody who has a key, be it in force or not."""
        return (entry.principal for entry in self._entries.values())

    def replace(self, records: Iterable[Record], *, development: bool) -> None:
        """Take over what the database says; development keys count only if `development`."""
        self._entries = {record.id.encode(): _entry(record, development) for record in records}

    def authenticate(self, headers: Headers) -> Principal | None:
        """Whose key these headers carry; None if they carry no key of ours.

        Raises:
            Unauthenticated: the key is wrong, revoked, expired or incomplete, or there are two different ones.
        """
        token = credential(headers)
        if token is None:
            return None
        match = PATTERN.fullmatch(token)
        if match is None:
            if token.startswith(PREFIX):
                raise WrongKey("The API key is not complete: copy it again from its first to its last character.")
            return None
        return self._check(*match.groups())

    def _check(self, id: bytes, secret: bytes) -> Principal:
        """An unknown id is compared with nobody's hashes, so that it takes as long as a wrong secret."""
        entry = self._entries.get(id, self._nobody)
        if not compare_digest(digest(secret, entry.salt), entry.digest):
            self._check_former(entry, secret)
        if entry.revoked:
            raise Unauthenticated("The API key has been revoked: ask for a new one.")
        if entry.expires <= time.time():
            raise Unauthenticated("The API key has expired: ask for a new one.")
        return entry.principal

    def _check_former(self, entry: Entry, secret: bytes) -> None:
        former = entry.former or self._no_former
        if not compare_digest(digest(secret, former.salt), former.digest):
            raise WrongKey("The API key is not valid.")
        if former.until <= time.time() and not entry.revoked:
            raise Unauthenticated("The API key has been replaced by a newer one: use that.")


def credential(headers: Headers) -> bytes | None:
    """The one credential in `Authorization` and `X-API-Key`; None if there is none.

    Raises:
        Unauthenticated: two different ones, so that no two parts of a system can disagree about who asks.
    """
    found = None
    for name, value in headers:
        if name == b"authorization":
            token = _bearer(value)
        elif name == b"x-api-key":
            token = value.strip()
        else:
            continue
        if found is not None and token and token != found:
            raise Unauthenticated("Two different credentials were given: send one, in Authorization or in X-API-Key.")
        found = token or found
    return found


def _bearer(value: bytes) -> bytes:
    """The token after `Bearer`; another scheme's whole value, which is then no key of ours."""
    scheme, _, token = value.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    if scheme.startswith(PREFIX):
        raise Unauthenticated("The Authorization header lacks its scheme: send 'Authorization: Bearer KEY'.")
    return value


def _entry(record: Record, development: bool) -> Entry:
    expires = record.expires if record.expires is not None else float("inf")
    revoked = record.revoked is not None or (record.development and not development)
    return Entry(record.principal, record.salt, record.digest, expires, revoked, _former(record))


def _former(record: Record) -> Former | None:
    if record.former_salt is None or record.former_digest is None:
        return None
    return Former(record.former_salt, record.former_digest, record.former_until or 0.0)
