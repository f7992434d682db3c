"""An issuer with real keys, the server where it publishes them, and a gateway that trusts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace_jwt.authenticator import Authenticator
from headrace_jwt.config import JwtConfig
from headrace_jwt.keyset import KeySet, from_pem, from_secret
from headrace_jwt.sources import FixedKeys

ISSUER = "https://login.example.com/realms/ai"
AUDIENCE = "headrace"
SECRET = "0123456789abcdef" * 4


class Keys:
    """Private keys of every kind, made once."""

    rsa = generate_private_key(65537, 2048)
    other_rsa = generate_private_key(65537, 2048)
    small_rsa = generate_private_key(65537, 1024)
    p256 = ec.generate_private_key(ec.SECP256R1())
    p384 = ec.generate_private_key(ec.SECP384R1())
    p521 = ec.generate_private_key(ec.SECP521R1())
    ed25519 = Ed25519PrivateKey.generate()

    @staticmethod
    def for_algorithm(algorithm: str) -> Any:
        if algorithm.startswith("HS"):
            return SECRET
        return {"ES256": Keys.p256, "ES384": Keys.p384, "ES512": Keys.p521, "EdDSA": Keys.ed25519}.get(
            algorithm, Keys.rsa
        )

    @staticmethod
    def pem(key: Any) -> str:
        return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    @staticmethod
    def jwk(key: Any, **fields: Any) -> dict[str, Any]:
        """A public key as an issuer publishes it."""
        family = {RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
        name = next((name for kind, name in family.items() if isinstance(key, kind)), "EdDSA")
        described: dict[str, Any] = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
        return {**described, **fields}


@pytest.fixture(scope="session")
def keys() -> type[Keys]:
    return Keys


@pytest.fixture(scope="session")
def token() -> Callable[..., str]:
    """A signed token. Keyword arguments are claims, None leaves one out; times are relative to now."""

    def make(key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
        now = time.time()
        for name, usual in (("exp", 600), ("iat", 0), ("nbf", None)):
            offset = claims.pop(name, usual)
            claims[name] = now + offset if type(offset) in (int, float) else offset
        full = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", **claims}
        full = {name: value for name, value in full.items() if value is not None}
        signer = Keys.for_algorithm(algorithm) if key is None else key
        return jwt.api_jws.PyJWS().encode(json.dumps(full).encode(), signer, algorithm, headers)

    return make


@pytest.fixture(scope="session")
def config() -> Callable[..., JwtConfig]:
    """The plugin's configuration, trusting the issuer's RSA key unless told otherwise."""

    def make(**options: Any) -> JwtConfig:
        if not {"secret", "public_key", "jwks_url"} & options.keys():
            options["public_key"] = Keys.pem(Keys.rsa)
        return JwtConfig(**{"issuer": ISSUER, "audience": AUDIENCE, **options})

    return make


@pytest.fixture(scope="session")
def trusting(config: Callable[..., JwtConfig]) -> Callable[..., Authenticator]:
    """An authenticator with these options; `keys` in place of those that the configuration names."""

    def make(keys: KeySet | None = None, **options: Any) -> Authenticator:
        made = config(**options)
        authenticator = Authenticator(made)
        if keys is None:
            keys = (
                from_secret(made.secret.reveal(), made.algorithms)
                if made.secret
                else from_pem((made.public_key or "").encode(), made.algorithms)
            )
        authenticator.source = FixedKeys(keys)
        return authenticator

    return make


@pytest.fixture(scope="session")
def bearer() -> Callable[[str], list[tuple[bytes, bytes]]]:
    return lambda token: [(b"host", b"localhost"), (b"authorization", b"Bearer " + token.encode())]


class KeyServer:
    """Where an issuer publishes its keys: a real HTTP server that does what it is told.

    Attributes:
        keys: what it publishes.
        body: answered instead of the keys, if set.
        answering: cleared, it accepts requests and says nothing.
        asked: how many requests have come.
        tls: how it speaks TLS; set it and start it anew.
    """

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.body: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.tls: ssl.SSLContext | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/certs"

    async def start(self) -> None:
        """Listen; again on the same port if it has been stopped."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await self.answering.wait()
            body = self.body if self.body is not None else json.dumps({"keys": self.keys}).encode()
            extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            head = f"HTTP/1.1 {self.status} X\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
            writer.write(head.encode() + body)
            await writer.drain()


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """Publishes the RSA key under the name `one`."""
    server = KeyServer()
    server.keys = [Keys.jwk(Keys.rsa, kid="one", use="sig", alg="RS256")]
    await server.start()
    yield server
    server.answering.set()
    await server.stop()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds."""

    async def wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            await asyncio.sleep(0.02)

    return wait
