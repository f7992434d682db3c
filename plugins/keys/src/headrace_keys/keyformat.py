"""What a key looks like, and what is kept of it.

A key is `hr-ID-SECRET`: a public id of 12 characters, by which it is found and which may be logged, and a secret of 32
characters (190 bits of the operating system's randomness). Letters, digits and hyphens only, so that it survives
URLs, shells and copying.

Only a hash of the secret is kept: BLAKE2b keyed with 16 random bytes of salt per key (RFC 7693). Slow hashes such as
scrypt or Argon2 exist because people choose guessable passwords. Nobody can guess one of 2^190 secrets however
fast the hash is, so a fast one loses nothing, and a request costs about a microsecond instead of a tenth of a second.
"""

from __future__ import annotations

import re
import secrets
import string
from hashlib import blake2b

PREFIX = b"hr-"
ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 (https://www.crockford.com/base32.html): no letters that look like digits."""
ID_LENGTH = 12
SECRET_ALPHABET = string.ascii_letters + string.digits
SECRET_LENGTH = 32
SALT_BYTES = 16
DIGEST_BYTES = 32
PERSON = b"headrace-keys"

PATTERN = re.compile(rb"hr-([%s]{%d})-([A-Za-z0-9]{%d})" % (ID_ALPHABET.encode(), ID_LENGTH, SECRET_LENGTH))
_ANYWHERE = re.compile(PATTERN.pattern.decode())


def holds_key(text: str) -> bool:
    """Whether a whole key stands somewhere in a text."""
    return _ANYWHERE.search(text) is not None


def new_id() -> str:
    """A public id: 60 random bits."""
    return _random(ID_ALPHABET, ID_LENGTH)


def new_secret() -> str:
    """A secret: 190 random bits."""
    return _random(SECRET_ALPHABET, SECRET_LENGTH)


def new_salt() -> bytes:
    return secrets.token_bytes(SALT_BYTES)


def whole_key(id: str, secret: str) -> str:
    """The key as its owner gets it."""
    return f"hr-{id}-{secret}"


def digest(secret: bytes, salt: bytes) -> bytes:
    """What is kept of a secret."""
    return blake2b(secret, digest_size=DIGEST_BYTES, key=salt, person=PERSON).digest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
