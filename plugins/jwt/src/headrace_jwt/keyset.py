"""Keys that check signatures, each bound to the algorithms that it may be used with.

A token chooses among these keys by its `alg` and `kid`; it can bring none. A public key is bound to public-key
algorithms here, before any token is seen, and so can never be taken for the secret of an HMAC.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jwt
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm, get_default_algorithms

RSA_BITS = 2048
"""The shortest RSA key (RFC 7518, section 3.3)."""
RSA_ALGORITHMS = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
"""Each elliptic curve goes with one algorithm (RFC 7518, section 3.4)."""
MAX_KEYS = 100
"""In one JWKS: a set with more is not somebody's signing keys."""
MAX_TRIES = 8
"""Keys that are tried at most for a token that does not name its key."""
_MISMATCH = (ValueError, TypeError, UnsupportedAlgorithm, jwt.PyJWTError)

_algorithms: Callable[[], dict[str, Algorithm]] = functools.cache(get_default_algorithms)


class VerifyKey(msgspec.Struct, frozen=True):
    """One key: its name in the set, and the algorithms it is used with."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any

    def __repr__(self) -> str:
        return f"VerifyKey({self.kid!r})"

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether this key made the signature. Costs up to 0.2 ms of the event loop for public keys."""
        return algorithm in self.algorithms and _algorithms()[algorithm].verify(signed, self.key, signature)


class KeySet:
    """Keys in the order in which they were published."""

    def __init__(self, keys: Iterable[VerifyKey], *, named: bool = True) -> None:
        """`named`: whether tokens choose by `kid`. A single key of the configuration serves whatever they say."""
        self._keys = tuple(keys)
        self._kids = frozenset(key.kid for key in self._keys)
        self._named = named

    def __len__(self) -> int:
        return len(self._keys)

    def knows(self, kid: str | None) -> bool:
        """Whether there is a key of this name; a token without a name does not ask for a particular one."""
        return not self._named or kid is None or kid in self._kids

    def candidates(self, algorithm: str, kid: str | None) -> list[VerifyKey]:
        """The keys that may have made a signature."""
        any_name = kid is None or not self._named
        fitting = [key for key in self._keys if (any_name or key.kid == kid) and algorithm in key.algorithms]
        return fitting[:MAX_TRIES]


def from_secret(secret: str, algorithms: Collection[str]) -> KeySet:
    """The key set of one shared secret: its text in UTF-8."""
    return KeySet([VerifyKey(None, frozenset(algorithms), secret.encode())], named=False)


def from_pem(pem: bytes, algorithms: Collection[str]) -> KeySet:
    """The key set of one public key or certificate.

    Raises:
        ValueError: it is none, or does not fit the algorithms; says what to do, and shows no part of it.
    """
    if b"PRIVATE KEY-----" in pem:
        raise ValueError("this is a private key, which belongs to the issuer alone: give the public one")
    try:
        is_certificate = b"-----BEGIN CERTIFICATE-----" in pem
        key = x509.load_pem_x509_certificate(pem).public_key() if is_certificate else load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("this is no public key or certificate in PEM form") from error
    fitting = fits(key) & frozenset(algorithms)
    if not fitting:
        possible = ", ".join(sorted(fits(key)))
        raise ValueError(f"this key does not fit the algorithms: it can check {possible}")
    return KeySet([VerifyKey(None, fitting, key)], named=False)


def fits(key: object) -> frozenset[str]:
    """The algorithms whose signatures a public key can check. Raises ValueError if it is none, or too weak."""
    if isinstance(key, RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise ValueError(f"this RSA key has {key.key_size} bits, and less than {RSA_BITS} are not safe")
        return RSA_ALGORITHMS
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES:
        return frozenset((CURVES[key.curve.name],))
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return frozenset(("EdDSA",))
    raise ValueError("this kind of key has no algorithm that is accepted here")


class _Jwks(msgspec.Struct):
    keys: list[Any]


_JWKS = msgspec.json.Decoder(_Jwks)


def from_jwks(body: bytes, algorithms: Collection[str]) -> KeySet:
    """The keys of a JWKS that can be used; those of other kinds and for other ends are left out, as RFC 7517 asks.

    Raises:
        ValueError: it is no JWKS, or has no key that can be used. Shows no part of it.
    """
    try:
        published = _JWKS.decode(body).keys
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("the answer is no JSON Web Key Set") from None
    if len(published) > MAX_KEYS:
        raise ValueError(f"the answer has {len(published)} keys, and more than {MAX_KEYS} are not read")
    keys = [key for jwk in published if (key := _usable(jwk, frozenset(algorithms))) is not None]
    if not keys:
        raise ValueError(f"of the {len(published)} keys in the answer none can be used with {', '.join(algorithms)}")
    return KeySet(keys)


def _usable(jwk: Any, algorithms: frozenset[str]) -> VerifyKey | None:
    """One key of a set; None if it is none of those that check signatures of these algorithms."""
    if not isinstance(jwk, dict) or not _is_for_signatures(jwk):
        return None
    kid, bound = jwk.get("kid"), jwk.get("alg")
    try:
        key = _algorithms()[_FAMILIES[jwk["kty"]]].from_jwk(jwk)
        fitting = fits(key) & algorithms & (frozenset((bound,)) if bound is not None else algorithms)
    except (KeyError, *_MISMATCH):
        return None
    return VerifyKey(kid, fitting, key) if fitting else None


_FAMILIES = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""Which reader knows a kind of key; symmetric keys (`oct`) are never taken from the network."""


def _is_for_signatures(jwk: Mapping[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(jwk.get("kid"), str | None)
        and isinstance(jwk.get("kty"), str)
        and isinstance(jwk.get("alg"), str | None)
    )
