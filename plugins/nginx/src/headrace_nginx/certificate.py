"""A development certificate: an authority of one's own and a server certificate signed by it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.errors import HeadraceError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
"""Apple's systems refuse server certificates of private authorities beyond 825 days."""
RENEW_DAYS = 30
ALWAYS = ("localhost", "127.0.0.1", "::1")
KEY_FILE_MODE, PUBLIC_FILE_MODE = 0o600, 0o644

Key = ec.EllipticCurvePrivateKey
Pair = tuple[x509.Certificate, Key]


def ensure(folder: Path, names: Sequence[str], now: datetime.datetime | None = None) -> Path:
    """Make sure that `folder` holds a valid certificate for `names` and localhost; returns the authority's file.

    `ca.pem` is for clients to trust; `server.pem` has certificate and key, for nginx. What is there and good for
    another month is kept. `now` is for tests.

    Raises:
        HeadraceError: a file cannot be written.
    """
    moment = now or datetime.datetime.now(datetime.UTC)
    wanted = list(dict.fromkeys([*ALWAYS, *names]))
    try:
        with _locked(folder):
            authority = _load_authority(folder, moment) or _new_authority(folder, moment)
            if not _is_good(folder / "server.pem", authority, wanted, moment):
                _new_server(folder, authority, wanted, moment)
    except OSError as error:
        raise HeadraceError(f"the development certificate cannot be kept in {folder}: {error.strerror}") from error
    return folder / "ca.pem"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands at once must not write halves of two pairs."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, KEY_FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _load_authority(folder: Path, now: datetime.datetime) -> Pair | None:
    pair = _read_pair(folder / "ca.pem", folder / "ca.key")
    return pair if pair is not None and _lasts(pair[0], now, SERVER_DAYS) else None


def _new_authority(folder: Path, now: datetime.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Headrace development authority " + os.urandom(4).hex())
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _key_bytes(key), KEY_FILE_MODE)
    _write(folder / "ca.pem", _certificate_bytes(certificate), PUBLIC_FILE_MODE)
    return certificate, key


def _is_good(path: Path, authority: Pair, names: Sequence[str], now: datetime.datetime) -> bool:
    """Whether the server certificate is whole, ours, for these names, and far from its end."""
    pair = _read_pair(path, path)
    if pair is None or not _lasts(pair[0], now, RENEW_DAYS):
        return False
    try:
        pair[0].verify_directly_issued_by(authority[0])
        carried = pair[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return list(carried) == _alternative_names(names)


def _new_server(folder: Path, authority: Pair, names: Sequence[str], now: datetime.datetime) -> None:
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name("Headrace development server"), issuer.subject, key, now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(folder / "server.pem", _certificate_bytes(certificate) + _key_bytes(key), KEY_FILE_MODE)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _lasts(certificate: x509.Certificate, now: datetime.datetime, days: int) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins <= now and ends - now > datetime.timedelta(days=days)


def _read_pair(certificate_file: Path, key_file: Path) -> Pair | None:
    """A certificate and the key that belongs to it; None when either is missing, damaged, or another's."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(_only_key(key_file.read_bytes()), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return certificate, key


def _only_key(data: bytes) -> bytes:
    begin = data.find(b"-----BEGIN PRIVATE KEY-----")
    return data[begin:] if begin >= 0 else b""


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_bytes(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step; a key is at no moment readable by others."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    temporary.replace(path)
