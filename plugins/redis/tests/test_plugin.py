"""The plugin in a gateway: switched on, told where the server is, let in."""

from __future__ import annotations

import datetime
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from headrace import hookimpl
from headrace.config import Secret
from headrace.errors import ConfigError, HeadraceError, RateLimited
from headrace.gateway import Gateway
from headrace.ledger import Limit, Refusal
from headrace.settings import parse
from headrace.testing import FakeBackend, serve
from headrace_redis.config import RedisConfig, address_of
from headrace_redis.ledger import RedisHold, RedisLedger

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
TOTAL = Limit("t:total", "sum", 2)
Make = Callable[..., Any]


class Counts:
    """Lets two requests pass, ever."""

    def __init__(self, config: object, gateway: Gateway) -> None:
        self._gateway = gateway
        gateway.counts = True

    @hookimpl
    async def authorize(self, exchange: object) -> None:
        if isinstance(await self._gateway.ledger.reserve((TOTAL,), (1,)), Refusal):
            raise RateLimited("no more")


async def statuses(document: dict[str, Any], count: int) -> list[int]:
    async with serve(document, {"counts": Counts}) as running, httpx.AsyncClient(base_url=running.url) as client:
        return [(await client.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(count)]


async def test_gateways_share_what_they_count_in_the_server(server: Any) -> None:
    async with FakeBackend() as backend:
        document = backend.config(plugins={"redis": {"url": f"unix://{server.path}"}})
        assert await statuses(document, 1) == [200]
        assert await statuses(document, 2) == [200, 429]
    assert server.only_value("*t:total")[b"used"] == b"2"


async def test_a_gateway_without_its_server_counts_alone_or_says_503(tmp_path: Path) -> None:
    async with FakeBackend() as backend:
        for mode, expected in (("local", [200, 200, 429]), ("open", [200, 200, 200]), ("closed", [503, 503, 503])):
            table = {"url": f"unix://{tmp_path}/nobody", "on_failure": mode}
            document = backend.config(plugins={"redis": table})
            assert await statuses(document, 3) == expected


def test_nothing_is_opened_before_the_gateway_runs() -> None:
    code = (
        "import sys; seen = []; sys.addaudithook(lambda event, _: event.startswith('socket.') and seen.append(event));"
        "from headrace.gateway import Gateway; from headrace.settings import parse; seen.clear();"
        "Gateway(parse({'plugins': {'redis': {'url': 'redis://localhost'}}})).assemble().ledger;"
        "print(seen, 'headrace_redis.ledger' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ("h", 6379, "", 0, False, "", "")),
        ("redis://h:7000/3", ("h", 7000, "", 3, False, "", "")),
        ("rediss://u:p%40ss@h/1", ("h", 6379, "", 1, True, "u", "p@ss")),
        ("redis://:word@[::1]:1", ("::1", 1, "", 0, False, "", "word")),
        ("unix:///run/r.sock?db=2", ("", 6379, "/run/r.sock", 2, False, "", "")),
    ],
)
def test_a_url_says_where_the_server_is(url: str, expected: tuple[Any, ...]) -> None:
    found = address_of(RedisConfig(url=Secret(url)))
    assert (
        *(found.host, found.port, found.path, found.database, found.tls),
        *(found.username, found.password.reveal()),
    ) == expected


@pytest.mark.parametrize(
    "table",
    [
        {"url": "http://:hunter2@h"},
        {"url": "redis://:hunter2@h:port"},
        {"url": "redis://:hunter2@h/db"},
        {"url": "redis://:hunter2@h?timeout=5"},
        {"url": "unix://:hunter2@host"},
        {"url": "hunter2"},
        {"url": "redis://h", "ca": "hunter2"},
        {"url": "redis://h", "username": "hunter2"},
        {"deadline": 0},
        {"on_failure": "hunter2"},
        {"prefix": ""},
    ],
)
def test_a_mistake_is_found_before_the_start_and_no_secret_is_shown(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Gateway(parse({"plugins": {"redis": table}})).assemble()
    if table.get("on_failure") is None:
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ["url", "password"])
async def test_a_password_lets_in_and_is_never_shown(
    place: str, start_server: Make, ledger_at: Make, proxy_to: Make, said: Callable[[], list[str]]
) -> None:
    server = start_server()
    server.call("ACL", "SETUSER", "gw", "on", ">hunter2", "~*", "+@all")
    async with proxy_to(server.path) as proxy:
        where = proxy.url.removeprefix("redis://")
        table: dict[str, Any] = {"url": f"redis://gw:hunter2@{where}/2"}
        if place == "password":
            table = {"url": f"redis://{where}/2", "options": {"username": "gw", "password": Secret("hunter2")}}
        async with ledger_at(table["url"], **table.get("options", {})) as ledger:
            assert isinstance(await ledger.reserve((TOTAL,), (1,)), RedisHold)
        async with ledger_at(f"redis://gw:hunter3@{where}", number=1) as ledger:
            assert ledger.state != "ok"
    server.call("SELECT", "2")
    assert len(server.call("KEYS", "*t:total")) == 1
    assert len(said()) == 1
    assert "WRONGPASS" in said()[0]
    assert "hunter" not in said()[0]


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs for itself, and its key, in one file."""
    import ipaddress

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "tls.pem"
    path.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


@pytest.fixture
async def encrypted(server: Any, certificates: Path, proxy_to: Make) -> AsyncIterator[Any]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates)
    async with proxy_to(server.path, context) as proxy:
        yield proxy


async def test_tls_is_spoken_with_a_server_that_is_trusted(encrypted: Any, certificates: Path, ledger_at: Make) -> None:
    async with ledger_at(encrypted.url, ca=str(certificates)) as ledger:
        assert isinstance(await ledger.reserve((TOTAL,), (1,)), RedisHold)


async def test_a_server_that_is_not_trusted_is_told_nothing(
    encrypted: Any, ledger_at: Make, said: Callable[[], list[str]]
) -> None:
    async with ledger_at(encrypted.url) as ledger:
        assert ledger.state != "ok"
    assert encrypted.passed == 0
    assert "certificate" in said()[0]


async def test_a_file_of_authorities_that_is_not_there_stops_the_start(ledger_at: Make, tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="ca or certificate cannot be read"):
        async with ledger_at("rediss://127.0.0.1:1", ca=str(tmp_path / "none")):
            pass


def test_the_ledger_works_with_uvloop_as_well(server: Any, tmp_path: Path) -> None:
    import uvloop

    async def play() -> list[int]:
        config = RedisConfig(url=Secret(f"unix://{server.path}"), on_failure="closed", deadline=1.0)
        ledger = RedisLedger(config, lambda: ledger)
        async with ledger.running():
            hold = await ledger.reserve((TOTAL,), (2,))
            assert isinstance(hold, RedisHold)
            hold.settle((1,))
            return [level.used for level in await ledger.levels((TOTAL,))]

    assert uvloop.run(play()) == [1]
