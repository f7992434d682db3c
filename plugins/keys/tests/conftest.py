"""A gateway with the plugin in a directory of its own, processes beside it, and a PostgreSQL server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headrace.cli import main
from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import PluginError, RateLimited, Unauthenticated
from headrace.exchange import Exchange
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_keys.store import Store

CREATE = """
import sys
from pathlib import Path
from headrace_keys.store import Store
with Store.open(Path(sys.argv[1])) as store, store.writing():
    print(store.create(sys.argv[2])[1].reveal())
"""

CONFIG = """
[server]
state_dir = "{state_dir}"
[backends.b]
provider = "openai"
base_url = "http://127.0.0.1:9"
[models.chat]
targets = ["b"]
aliases = ["gpt"]
[plugins.openai]
[plugins.keys]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(CONFIG.format(state_dir=tmp_path))
    return path


@pytest.fixture
def make_gateway(tmp_path: Path) -> Callable[..., Gateway]:
    """A gateway over `tmp_path`; the arguments are keys of `[plugins.keys]`."""

    def make(**keys: Any) -> Gateway:
        document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"keys": keys}}
        return Gateway(parse(document)).assemble()

    return make


@pytest.fixture
def create_elsewhere(database: Path) -> Callable[[str], str]:
    """Make a key in another process; returns the whole key."""

    def create(name: str) -> str:
        argv = [sys.executable, "-c", CREATE, str(database), name]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    return create


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds; returns how many seconds that took."""

    async def wait(condition: Callable[[], Any], seconds: float = 20.0) -> float:
        async def holds() -> Any:
            found = condition()
            return await found if inspect.isawaitable(found) else found

        started = time.monotonic()
        while not await holds():
            assert time.monotonic() - started < seconds, "did not happen in time"
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    return wait


@pytest.fixture
def let_in() -> Callable[[Gateway, str], Awaitable[bool]]:
    """Whether a request with a key is let in: by the plugin's own hook, which looks for changes first."""

    async def ask(gateway: Gateway, key: str) -> bool:
        scope: Any = {"headers": [(b"x-api-key", key.encode())], "method": "POST", "path": "/", "client": ("::1", 1)}
        exchange = Exchange(id="x", endpoint=OPENAI_ENDPOINTS["/v1/chat/completions"], scope=scope)
        try:
            return await gateway.plugins["keys"].authenticate(exchange) is not None
        except (Unauthenticated, RateLimited):
            return False

    return ask


@pytest.fixture
def kept_out(let_in: Callable[[Gateway, str], Awaitable[bool]]) -> Callable[[Gateway, str], Awaitable[bool]]:
    """Whether it is not."""

    async def ask(gateway: Gateway, key: str) -> bool:
        return not await let_in(gateway, key)

    return ask


@pytest.fixture
def cli(config: Path) -> Callable[..., Result]:
    """`headrace keys …` in this process; `fails=True` expects the exit status to be other than 0."""

    def run(*arguments: str, fails: bool = False, input: str | None = None) -> Result:
        done = CliRunner().invoke(main, ["--config", str(config), "keys", *arguments], input=input)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert (done.exit_code != 0) == fails, done.output
        return done

    return run


@pytest.fixture
def shown(cli: Callable[..., Result]) -> Callable[..., Any]:
    """What a command says with --json."""

    def run(*arguments: str) -> Any:
        return json.loads(cli(*arguments, "--json").stdout)

    return run


class PostgresServer:
    """A PostgreSQL server of our own, in a temporary directory, as a user that is not root."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory = directory
        self._programs = programs
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[Any] | None = None

    def make(self) -> None:
        password = self.directory / "password"
        password.write_text("right\n")
        password.chmod(0o644)
        arguments = ["-U", "owner", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8"]
        argv = [str(self._programs / "initdb"), "-D", str(self.directory / "data"), *arguments, "--locale=C"]
        subprocess.run(argv, check=True, capture_output=True, timeout=120, cwd=self.directory, **self._user)
        self._certify()

    def _certify(self) -> None:
        """A certificate of its own, which vouches for itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = builder.add_extension(addresses, critical=False).sign(key, hashes.SHA256())
        pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
        self.certificate.write_bytes(certificate.public_bytes(pem))
        private = self.directory / "data" / "server.key"
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
        private.chmod(0o600)
        if self._user:
            os.chown(private, self._user["user"], self._user["group"])

    @property
    def certificate(self) -> Path:
        return self.directory / "server.crt"

    def start(self) -> None:
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory}
        options |= {"fsync": "off", "shared_buffers": "8MB", "max_connections": 30}
        options |= {"ssl": "on", "ssl_cert_file": self.certificate}
        argv = [str(self._programs / "postgres"), "-D", str(self.directory / "data")]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log, cwd=self.directory, **self._user)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        from pg8000.exceptions import Error  # type: ignore[import-untyped]
        from pg8000.native import Connection  # type: ignore[import-untyped]

        deadline = time.monotonic() + 60
        while True:
            try:
                Connection("owner", "127.0.0.1", "postgres", self.port, password="right", timeout=5).close()
                return
            except Error:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # at once: clients are not waited for
            process.wait(60)

    def execute(self, statement: str, database: str = "postgres") -> Any:
        from pg8000.native import Connection

        with contextlib.closing(
            Connection("owner", host="127.0.0.1", port=self.port, password="right", database=database, timeout=20)
        ) as connection:
            return connection.run(statement)

    def url(self, database: str = "postgres", password: str = "right") -> str:
        return f"postgresql://owner:{password}@127.0.0.1:{self.port}/{database}"


def _programs() -> Path | None:
    """Where `initdb` and `postgres` are: on PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in places if (each / "initdb").exists() and (each / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("pg8000", reason="pip install 'headrace-keys[postgresql]'")
    programs = _programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="headrace-pg-", ignore_cleanup_errors=True) as directory:
        server = PostgresServer(programs, Path(directory))
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def postgres_url(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """A database of this test's own."""
    name = f"test_{abs(hash(request.node.nodeid)):x}"
    postgres.execute(f"CREATE DATABASE {name}")
    return postgres.url(name)


@pytest.fixture
def open_eventually() -> Callable[..., Store]:
    """Open a store whose server may still be on its way up."""

    def open_store(place: Any, seconds: float = 30.0) -> Store:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return Store.open(place)
            except PluginError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return open_store


@pytest.fixture
def locked(database: Path) -> Callable[[], Any]:
    """A context in which another process writes to the database."""

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield

    return hold


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port on which nobody listens, taken so that nobody begins to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
