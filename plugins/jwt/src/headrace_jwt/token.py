"""A token taken apart, and every reason to refuse one. Nothing in here believes what a token says."""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from headrace.exchange import Headers

SHAPE = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)")
"""Three parts in base64url without padding (RFC 7515, section 7.1): a token of ours, whatever is in it."""
SHOWN = 64
"""Characters of a token's own words that a debug line repeats at most."""
BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding may raise: `binascii.Error` and `UnicodeError` are ValueErrors, deep nesting is a RecursionError."""


class Refused(Exception):
    """A token that is not accepted.

    Args:
        message: for the caller: what to do. Never repeats the token.
        why: for the operator's debug log. No part of the signature, no claim that the configuration does not name.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.message, self.why = message, why


class Header(msgspec.Struct, frozen=True):
    """What a token says about itself. Keys and addresses of keys in it (`jwk`, `jku`, `x5c`, `x5u`) are not read."""

    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Any = msgspec.UNSET


class Token(msgspec.Struct, frozen=True):
    """A token in its parts. Has no useful `repr`, so that none shows it."""

    header: Header
    signed: bytes
    payload: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "Token(***)"


_HEADERS = msgspec.json.Decoder(Header)
_CLAIMS = msgspec.json.Decoder(dict[str, Any])


def find(headers: Headers) -> bytes | None:
    """The token in `Authorization: Bearer` or `X-API-Key`; None if there is none.

    Raises:
        Refused: there is another credential beside it, so that no two parts of a system disagree about who asks;
            or its scheme is missing.
    """
    given: list[bytes] = []
    for name, value in headers:
        if name == b"authorization":
            given.append(_bearer(value))
        elif name == b"x-api-key":
            given.append(value.strip())
    token = next((each for each in given if SHAPE.fullmatch(each)), None)
    if token is not None and any(each and each != token for each in given):
        raise Refused(
            "Two different credentials were given: send one, in Authorization or in X-API-Key.",
            "there was another credential beside it",
        )
    return token


def _bearer(value: bytes) -> bytes:
    """The token after `Bearer`; another scheme's whole value, which is then no token of ours."""
    value = value.strip()
    scheme, _, token = value.partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    if SHAPE.fullmatch(value):
        raise Refused(
            "The Authorization header lacks its scheme: send 'Authorization: Bearer TOKEN'.", "it came without a scheme"
        )
    return value


def take_apart(token: bytes) -> Token:
    """The parts of what `find` has found. Raises Refused."""
    head, _, rest = token.partition(b".")
    payload, _, signature = rest.partition(b".")
    signed = token[: len(head) + 1 + len(payload)]
    try:
        return Token(_HEADERS.decode(_decoded(head)), signed, _decoded(payload), _decoded(signature))
    except BROKEN as error:
        raise _malformed(f"header or encoding: {type(error).__name__}") from None


def claims_of(payload: bytes) -> dict[str, Any]:
    """The claims, of a token whose signature is right. Raises Refused."""
    try:
        return _CLAIMS.decode(payload)
    except BROKEN as error:
        raise _malformed(f"claims: {type(error).__name__}") from None


def shown(value: object) -> str:
    """A token's own words, fit for one line of a log."""
    text = ascii(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _decoded(part: bytes) -> bytes:
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _malformed(why: str) -> Refused:
    return Refused("The token is malformed: copy it again from its first to its last character.", why)
