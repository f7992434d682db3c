"""`[plugins.jwt]`, and every combination that is refused before anything listens."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.config import Positive, Secret, Strict
from headrace.exchange import Role

AlgorithmName = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]
HMAC_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""How long a secret has to be at least: as long as the hash (RFC 7518, section 3.2)."""

Name = Annotated[str, msgspec.Meta(min_length=1)]


class JwtConfig(Strict, frozen=True):
    """`[plugins.jwt]`: whose tokens are accepted, and what their claims mean."""

    issuer: str | list[str] | bool
    """The claim `iss` of accepted tokens, to the letter; a list if there are several. `false` accepts any."""
    audience: str | list[str] | bool
    """What the claim `aud` must name, or one of several. `false` accepts tokens that were made for other services:
    do that only if the key signs tokens for this gateway alone."""
    algorithms: list[AlgorithmName] = msgspec.field(default_factory=lambda: ["RS256"])
    """Signatures that are accepted; nothing in a token can add to them."""
    secret: Secret | None = None
    """The key of HS256 (at least 32 bytes), HS384 (48) or HS512 (64), shared with whoever makes the tokens."""
    public_key: Name | None = None
    """The issuer's public key or certificate: the path of a PEM file, or the PEM text itself. Read at the start."""
    jwks_url: Name | None = None
    """Where the issuer publishes its keys (RFC 7517): `https`, or `http` on this machine."""
    jwks_ca: Name | None = None
    """A CA bundle to check the certificate of `jwks_url` against, in place of the usual authorities."""
    jwks_proxy: Secret | None = None
    """An HTTP proxy on the way to `jwks_url`. Proxy variables of the environment are ignored."""
    jwks_refresh: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0
    """Seconds between two fetches of the keys, where the issuer's `Cache-Control: max-age` does not say otherwise.
    That counts from 60 s (or this, if it is less) to an hour (or this, if it is more)."""
    jwks_grace: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 86_400.0
    """Seconds for which the keys fetched last stay valid while they cannot be fetched. After that tokens are answered
    503."""
    jwks_timeout: Annotated[float, msgspec.Meta(gt=0, le=20)] = 5.0
    """Seconds one fetch may take as a whole."""
    leeway: Annotated[float, msgspec.Meta(ge=0, le=600)] = 30.0
    """Seconds by which clocks may differ."""
    required_claims: list[Name] = msgspec.field(default_factory=list)
    """Claims that must be there besides `exp`, and besides `iss` and `aud` where those are checked."""
    max_lifetime: Positive | None = None
    """The longest time from `iat` to `exp`, in seconds: tokens that are valid for longer are refused."""
    types: list[Name] = msgspec.field(default_factory=lambda: ["JWT", "at+jwt"])
    """Values of the header `typ` that are accepted, in any case; a token may have none. Keeps out what the issuer
    signs for other ends, logout tokens for instance."""
    id_claim: Name = "sub"
    """The claim that says who asks: a string or an integer that no two callers share and nobody can choose."""
    name_claim: Name | None = None
    """The claim with a name for logs and people."""
    team_claim: Name | None = None
    """The claim with the caller's team: a string, or a list of one."""
    role_claim: Name | None = None
    """The claim with the caller's role or roles: a string or a list of strings. Needs `roles`."""
    roles: dict[str, Role] = msgspec.field(default_factory=dict)
    """What values of `role_claim` mean: `user`, `metrics` or `admin`. Any other value means `user`; of several, the
    mightiest counts."""
    models_claim: Name | None = None
    """The claim with the models the caller may ask for: a list, or names with spaces between them."""
    default_models: list[Name] | None = None
    """The models of callers without `models_claim`; left out, every model."""
    metadata_claims: list[Name] = msgspec.field(default_factory=list)
    """Claims that other plugins get to see, in the principal's `metadata`, under the same names."""
    cache_size: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000
    """How many verified tokens are remembered, so that their signatures are not checked again. About 1 kB each."""

    def __post_init__(self) -> None:
        _check_names("issuer", self.issuer)
        _check_names("audience", self.audience)
        _check_source(self)
        _check_algorithms(self)
        if self.jwks_url is not None:
            check_url(self.jwks_url)
        if (self.role_claim is None) is bool(self.roles):
            raise ValueError("role_claim and roles go together: set both or none")


def accepted(names: str | list[str] | bool) -> frozenset[str] | None:
    """What `issuer` or `audience` accepts; None: anything."""
    if isinstance(names, bool):
        return None
    return frozenset((names,) if isinstance(names, str) else names)


def _check_names(key: str, names: str | list[str] | bool) -> None:
    if names is True:
        raise ValueError(f"{key}: write what is accepted, or false to accept anything")
    values = accepted(names)
    if values is not None and (not values or "" in values):
        raise ValueError(f"{key}: is empty: write what is accepted, or false to accept anything")


def _check_source(config: JwtConfig) -> None:
    given = [config.secret is not None, config.public_key is not None, config.jwks_url is not None]
    if sum(given) != 1:
        raise ValueError("set exactly one of secret, public_key and jwks_url: where the keys come from")
    if config.jwks_url is None and (config.jwks_ca is not None or config.jwks_proxy is not None):
        raise ValueError("jwks_ca and jwks_proxy go with jwks_url alone")


def _check_algorithms(config: JwtConfig) -> None:
    """Keep secrets and public keys apart: a public key that serves as a secret lets everybody sign."""
    if not config.algorithms:
        raise ValueError("algorithms: is empty: no token could ever be accepted")
    symmetric = [name for name in config.algorithms if name in HMAC_BYTES]
    if config.secret is None:
        if symmetric:
            raise ValueError(f"algorithms: {symmetric[0]} needs a secret; with a public key anybody could sign")
        return
    if len(symmetric) != len(config.algorithms):
        raise ValueError('a secret goes with HS256, HS384 and HS512 alone: set algorithms = ["HS256"]')
    _check_secret(config.secret.reveal(), max(HMAC_BYTES[name] for name in symmetric))


def _check_secret(secret: str, least: int) -> None:
    if "-----BEGIN" in secret:
        raise ValueError("secret: this is a key in PEM form: use public_key, and an algorithm such as RS256")
    if len(secret.encode()) < least:
        raise ValueError(f"secret: is too short, it needs at least {least} bytes: openssl rand -base64 {least}")


def check_url(url: str) -> None:
    """Refuse an address from which keys must not be taken. Raises ValueError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"jwks_url: is not a URL: {error}") from None
    if parts.scheme not in ("https", "http") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("jwks_url: is not a URL: write https://HOST/PATH")
    if "@" in parts.netloc:
        raise ValueError("jwks_url: must not hold a password")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("jwks_url: must be https: whoever is on the way could put in keys of their own")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
