"""Ledgers of both kinds, rows to put into them, gateways with the plugin."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.testing import FakeBackend, Running, serve
from headrace_usage import Plugin
from headrace_usage.entry import Entry, Series
from headrace_usage.listing import listed
from headrace_usage.place import is_postgres, postgres_place
from headrace_usage.selection import Selection
from headrace_usage.store import Place, Store

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
SERIES = Series("k1", "ada's", "ada", "red", "user", "chat", "gpu1", "chat", 200, 0)
ENTRY = Entry(
    *(1_000_000, 1, 1, 0, SERIES, "req", None, None, None, None, 1, 0, 0, 0, 0),
    *(5, 0, 1, 15, 2000, 1000, 3, 0),
)
KINDS = ("sqlite", "postgres")


class PostgresServer:
    """A PostgreSQL server of our own, in a temporary directory, as a user that is not root."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory, self._programs = directory, programs
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

    def start(self) -> None:
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory}
        options |= {"fsync": "off", "shared_buffers": "8MB", "max_connections": 30}
        argv = [str(self._programs / "postgres"), "-D", str(self.directory / "data")]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log, cwd=self.directory, **self._user)
        from pg8000.exceptions import Error  # type: ignore[import-untyped]

        deadline = time.monotonic() + 60
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Error:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # at once: clients are not waited for
            process.wait(60)

    def execute(self, statement: str) -> Any:
        from pg8000.native import Connection  # type: ignore[import-untyped]

        with contextlib.closing(
            Connection("owner", host="127.0.0.1", port=self.port, password="right", database="postgres", timeout=20)
        ) as connection:
            return connection.run(statement)

    def new_database(self) -> str:
        """Its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://owner:right@127.0.0.1:{self.port}/{name}"


def _programs() -> Path | None:
    """Where `initdb` and `postgres` are: on PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in places if (each / "initdb").exists() and (each / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("pg8000", reason="pip install 'headrace-usage[postgresql]'")
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


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new ledger is, of either kind, as a configuration says it."""
    if request.param == "sqlite":
        return str(tmp_path / "usage.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def place(url: str) -> Place:
    return postgres_place(url) if is_postgres(url) else Path(url)


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with Store.open(place, 5.0) as store:
        yield store


def _entry(number: int = 1, **fields: Any) -> Entry:
    series = SERIES._replace(**{name: fields.pop(name) for name in Series._fields if name in fields})
    return ENTRY._replace(number=number, series=series, **fields)


@pytest.fixture(scope="session")
def entry() -> Callable[..., Entry]:
    """A row that is like all others but for what is said: `entry(7, at=…, model=…)`."""
    return _entry


def _rows(place: Place, **filters: Any) -> list[dict[str, Any]]:
    with Store.open(place, 5.0, create=False) as store:
        return listed(store, Selection(since=0, filters=filters), 100_000)[::-1]


@pytest.fixture(scope="session")
def rows_in() -> Callable[..., list[dict[str, Any]]]:
    """All rows of a ledger as they are listed, the oldest first."""
    return _rows


class Named:
    """`X-Api-Key: NAME/TEAM/ROLE`."""

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, rest = (exchange.header(b"x-api-key") or "").partition("/")
        team, _, role = rest.partition("/")
        known: Any = role or "user"
        return Principal(id=name, name=f"{name}'s key", owner=name, team=team or None, role=known) if name else None


class Gate(NamedTuple):
    """A running gateway with a ledger."""

    backend: FakeBackend
    client: httpx.AsyncClient
    running: Running

    async def ask(self, who: str = "ada/red", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers={"x-api-key": who})

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["usage"]
        return plugin

    async def rows(self, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        """All rows, once there are so many."""
        end = time.monotonic() + seconds
        while len(found := await asyncio.to_thread(_rows, self.plugin.database)) < count:
            assert time.monotonic() < end, f"{len(found)} rows of {count}"
            await asyncio.sleep(0.01)
        return found


@contextlib.asynccontextmanager
async def _recording(
    state_dir: Path | None = None, tables: Any = None, plugins: Any = (), **config: Any
) -> AsyncIterator[Gate]:
    async with FakeBackend() as backend:
        document = backend.config(plugins={"openai": {}, "usage": config})
        for name, table in (tables or {}).items():
            document[name] = {**document.get(name, {}), **table}
        document["server"] = {"anonymous": False, **({"state_dir": str(state_dir)} if state_dir else {})}
        async with (
            serve(document, {"named": Named, **dict(plugins)}) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            yield Gate(backend, client, running)


@pytest.fixture(scope="session")
def recording() -> Any:
    """A context with a `Gate`: `async with recording(prices=…, …options of the plugin) as gate`."""
    return _recording


@pytest.fixture(scope="session")
def locked() -> Callable[[Path], Any]:
    """A context in which another connection holds the write lock of a file."""

    @contextlib.contextmanager
    def hold(path: Path) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
            holder.execute("ROLLBACK")

    return hold


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Wait, blocking, until a condition holds; what it said."""

    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (said := condition()):
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.01)
        return said

    return wait
