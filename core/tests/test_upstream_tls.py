"""The one HTTP client and the ways to a backend that may not be what they say: TLS and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.config import Secret, TargetTimeouts
from headrace.errors import GatewayError, Unavailable, UpstreamError
from headrace.exchange import Reply, Target, UpstreamRequest
from headrace.upstream import Upstream, target_headers

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(serve: Serve, **options: Any) -> AsyncIterator[str]:
    """Serve each connection on the loopback; yields `HOST:PORT`."""
    tasks: set[asyncio.Task[Any]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, **options)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A backend that answers one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    await reader.readexactly(int(length[1]) if length else 0)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await writer.drain()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    client = Upstream()
    yield client
    await client.aclose()


def target(url: str, **fields: Any) -> Target:
    return Target(name="t", provider="openai", base_url=url, **fields)


async def post(upstream: Upstream, at: Target) -> Reply:
    return await upstream.send(at, UpstreamRequest(url=f"{at.base_url}/chat", headers=target_headers(at), body=b"{}"))


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backend")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "backend.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(built.public_bytes(pem) + private)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_a_self_signed_certificate_is_refused_and_says_why(upstream: Upstream, tls: ssl.SSLContext) -> None:
    asked = False

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = bool(await reader.read(1))

    async with listening(backend, ssl=tls) as address:
        with pytest.raises(UpstreamError, match="TLS certificate was not accepted") as raised:
            await post(upstream, target(f"https://{address}", api_key=Secret("sk-secret")))
    assert raised.value.detail is not None
    assert "self-signed certificate" in raised.value.detail
    assert not asked


async def test_a_certificate_for_another_name_is_refused(
    upstream: Upstream, tls: ssl.SSLContext, certificate: Path
) -> None:
    async with listening(answer, ssl=tls) as address:
        url = f"https://{address.replace('127.0.0.1', 'localhost')}"
        with pytest.raises(UpstreamError, match="TLS certificate was not accepted"):
            await post(upstream, target(url, verify=str(certificate)))


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_named_authority_is_trusted_and_verification_can_be_switched_off(
    upstream: Upstream, tls: ssl.SSLContext, certificate: Path, trusted: bool
) -> None:
    async with listening(answer, ssl=tls) as address:
        verify = str(certificate) if trusted else False
        assert (await post(upstream, target(f"https://{address}", verify=verify))).content == b"{}"


async def test_tls_to_a_plain_port_is_an_upstream_error(upstream: Upstream) -> None:
    async with listening(answer) as address:
        at = target(f"https://{address}", timeouts=TargetTimeouts(connect=0.5, first_byte=1.0))
        with pytest.raises(GatewayError) as raised:
            await post(upstream, at)
    assert raised.value.status in (502, 503, 504)
    assert raised.value.retryable


# --- Proxies ---


class Proxy:
    """A small forward proxy: CONNECT for https, absolute URLs for http."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        line, rest = head.split(b"\r\n", 1)
        self.lines.append(line)
        method, url, version = line.split()
        address = httpx.URL((url if b"//" in url else b"https://" + url).decode())
        onward_reader, onward = await asyncio.open_connection(address.host, address.port)
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            onward.write(b"%s %s %s\r\n%s" % (method, address.raw_path, version, rest))
        await asyncio.gather(_copy(reader, onward), _copy(onward_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_is_used_where_the_backend_names_one(
    upstream: Upstream, tls: ssl.SSLContext, certificate: Path, scheme: str
) -> None:
    proxy = Proxy()
    options = {"ssl": tls} if scheme == "https" else {}
    async with listening(answer, **options) as address, listening(proxy) as between:
        at = target(f"{scheme}://{address}", proxy=Secret(f"http://{between}"), verify=str(certificate))
        assert (await post(upstream, at)).content == b"{}"
        await upstream.aclose()
    asked = f"CONNECT {address}" if scheme == "https" else f"POST http://{address}/chat"
    assert proxy.lines == [f"{asked} HTTP/1.1".encode()]


LOGIN = b"\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n"
"""`user` with the password `p@ss`."""


async def test_a_proxy_is_told_its_password_before_a_plain_request(upstream: Upstream) -> None:
    proxy = Proxy()
    async with listening(answer) as address, listening(proxy) as between:
        await post(upstream, target(f"http://{address}", proxy=Secret(f"http://user:p%40ss@{between}")))
        await upstream.aclose()
    assert LOGIN in proxy.heads[0]


async def test_a_proxy_is_told_its_password_outside_the_tunnel_alone(
    upstream: Upstream, tls: ssl.SSLContext, certificate: Path
) -> None:
    proxy, heads = Proxy(), list[bytes]()

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async with listening(backend, ssl=tls) as address, listening(proxy) as between:
        proxied = Secret(f"http://user:p%40ss@{between}")
        await post(upstream, target(f"https://{address}", proxy=proxied, verify=str(certificate)))
        await upstream.aclose()
    assert LOGIN in proxy.heads[0]
    assert b"proxy-authorization" not in heads[0].lower()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_password_of_a_proxy_that_refuses_is_not_in_the_log(upstream: Upstream, scheme: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with listening(refuse) as between:
        with pytest.raises(UpstreamError) as raised:
            await post(upstream, target(f"{scheme}://127.0.0.1:9", proxy=Secret(f"http://user:secret@{between}")))
    assert raised.value.detail is not None
    assert "secret" not in raised.value.detail


async def test_a_proxy_that_cannot_be_reached_is_unavailable(upstream: Upstream) -> None:
    async with listening(answer) as address:
        with pytest.raises(Unavailable):
            await post(upstream, target(f"http://{address}", proxy=Secret("http://127.0.0.1:9")))


async def test_proxies_of_the_environment_are_ignored(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with listening(answer) as address:
        assert (await post(upstream, target(f"http://{address}"))).status == 200
