"""What the plugin accepts as configuration, and how it says no."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from headrace.errors import ConfigError, PluginError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import serve

BASE = {"issuer": "https://i.example", "audience": "a"}
JWKS = "https://i.example/certs"
LONG = "s" * 64


def gateway(environ: dict[str, str] | None = None, **jwt: Any) -> Gateway:
    return Gateway(parse({"plugins": {"jwt": jwt}}, environ=environ or {})).assemble()


def refusal(**jwt: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        gateway(**jwt)
    message = str(caught.value)
    assert LONG[:20] not in message
    return message


@pytest.mark.parametrize(
    "options",
    [
        {"jwks_url": JWKS},
        {"jwks_url": "http://127.0.0.1:8080/certs"},
        {"jwks_url": "http://[::1]/certs"},
        {"jwks_url": "http://localhost/certs"},
        {"public_key": "key.pem", "algorithms": ["ES256", "EdDSA"]},
        {"secret": "s" * 32, "algorithms": ["HS256"]},
        {"secret": LONG, "algorithms": ["HS256", "HS512"]},
        {"jwks_url": JWKS, "issuer": ["https://a", "https://b"], "audience": False},
        {"jwks_url": JWKS, "role_claim": "roles", "roles": {"boss": "admin"}},
    ],
)
def test_sound_configurations_are_accepted(options: dict[str, Any]) -> None:
    gateway(**{**BASE, **options})


@pytest.mark.parametrize("missing", ["issuer", "audience"])
def test_issuer_and_audience_must_be_said(missing: str) -> None:
    rest = {key: value for key, value in BASE.items() if key != missing}
    assert missing in refusal(jwks_url=JWKS, **rest)


@pytest.mark.parametrize("empty", [True, "", [], ["a", ""]])
@pytest.mark.parametrize("key", ["issuer", "audience"])
def test_an_empty_issuer_or_audience_is_refused(key: str, empty: Any) -> None:
    assert f"{key}: " in refusal(**{**BASE, "jwks_url": JWKS, key: empty})


@pytest.mark.parametrize(
    "options", [{}, {"jwks_url": JWKS, "public_key": "key.pem"}, {"jwks_url": JWKS, "secret": LONG}]
)
def test_there_must_be_exactly_one_source_of_keys(options: dict[str, Any]) -> None:
    assert "exactly one of" in refusal(**BASE, **options)


@pytest.mark.parametrize("algorithms", [["RS256"], ["HS256", "RS256"], ["EdDSA"]])
def test_a_secret_is_refused_for_algorithms_of_public_keys(algorithms: list[str]) -> None:
    assert "a secret goes with HS256" in refusal(**BASE, secret=LONG, algorithms=algorithms)


def test_a_secret_with_the_default_algorithms_is_refused_with_what_to_write() -> None:
    assert 'algorithms = ["HS256"]' in refusal(**BASE, secret=LONG)


@pytest.mark.parametrize("source", [{"jwks_url": JWKS}, {"public_key": "key.pem"}])
@pytest.mark.parametrize("algorithms", [["HS256"], ["RS256", "HS512"]])
def test_a_public_key_is_never_taken_for_a_secret(source: dict[str, str], algorithms: list[str]) -> None:
    assert "needs a secret" in refusal(**BASE, **source, algorithms=algorithms)


@pytest.mark.parametrize(
    ("length", "algorithms"), [(0, ["HS256"]), (31, ["HS256"]), (47, ["HS256", "HS384"]), (63, ["HS512"])]
)
def test_a_weak_secret_is_refused(length: int, algorithms: list[str]) -> None:
    assert "too short" in refusal(**BASE, secret="s" * length, algorithms=algorithms)


def test_a_key_in_pem_form_is_no_secret() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\n" + "A" * 64
    assert "use public_key" in refusal(**BASE, secret=pem, algorithms=["HS256"])


@pytest.mark.parametrize("algorithm", ["none", "None", "ES256K", "rs256", ""])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    assert "algorithms" in refusal(**BASE, jwks_url=JWKS, algorithms=[algorithm])


def test_no_algorithm_at_all_is_refused() -> None:
    assert "algorithms: is empty" in refusal(**BASE, jwks_url=JWKS, algorithms=[])


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/certs",
        "http://127.0.0.1.example.com/certs",
        "http://localhost@evil.example/certs",
        "https://user:word@i.example/certs",
        "file:///etc/keys.json",
        "https://",
        "https://[::1/certs",
        "https://i.example:port/",
        "https://i.example/a b",
        "i.example/certs",
    ],
)
def test_an_address_that_keys_must_not_come_from_is_refused(url: str) -> None:
    assert "jwks_url: " in refusal(**BASE, jwks_url=url)


@pytest.mark.parametrize("options", [{"role_claim": "roles"}, {"roles": {"a": "admin"}}])
def test_roles_and_their_claim_go_together(options: dict[str, Any]) -> None:
    assert "go together" in refusal(**BASE, jwks_url=JWKS, **options)


def test_an_unknown_role_is_refused() -> None:
    assert "roles" in refusal(**BASE, jwks_url=JWKS, role_claim="roles", roles={"a": "root"})


def test_options_of_another_source_are_refused() -> None:
    assert "jwks_ca" in refusal(**BASE, public_key="key.pem", jwks_ca="ca.pem")


def test_the_secret_may_come_from_the_environment_and_is_not_shown() -> None:
    made = gateway({"S": LONG}, **BASE, secret={"env": "S"}, algorithms=["HS256"])
    config = made.plugins["jwt"].config
    assert config.secret.reveal() == LONG and LONG not in repr(config)


def certificate(key: Any) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


async def start(**jwt: Any) -> None:
    async with serve({"plugins": {"jwt": {**BASE, **jwt}}}):
        pass


async def test_a_public_key_or_a_certificate_is_read_from_its_file(keys: Any, tmp_path: Path) -> None:
    for number, pem in enumerate((keys.pem(keys.rsa).encode(), certificate(keys.rsa))):
        file = tmp_path / f"{number}.pem"
        file.write_bytes(pem)
        await start(public_key=str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "no public key or certificate"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key or certificate"),
        ("private", "a private key"),
        ("small", "1024 bits"),
        ("ec", "does not fit the algorithms: it can check ES256"),
    ],
)
async def test_a_file_that_is_no_fitting_key_stops_the_start(
    keys: Any, tmp_path: Path, content: Any, said: str
) -> None:
    file = tmp_path / "key.pem"
    special = {
        "private": keys.rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "small": keys.pem(keys.small_rsa).encode(),
        "ec": keys.pem(keys.p256).encode(),
    }
    if content is not None:
        file.write_bytes(special[content] if isinstance(content, str) else content)
    with pytest.raises(PluginError) as caught:
        await start(public_key=str(file))
    assert said in str(caught.value) and str(file) in str(caught.value)
