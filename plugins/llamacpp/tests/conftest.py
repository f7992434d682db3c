"""A real llama.cpp with a small model, a program that stands in for it, and gateways that run either."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headrace.testing import free_port
from headrace_llamacpp import EngineConfig
from headrace_llamacpp.command import environment, serve_command

PATIENCE = 60.0
FAKE = Path(__file__).with_name("fake_llama.py")
KEY = "sk-engine"


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.01)
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200
    return False


@pytest.fixture(scope="session")
def model() -> Path:
    """The small model that the plugin `embedded` fetches, kept outside the repository."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("there is no xllamacpp")
    fetch = pytest.importorskip("headrace_embedded.fetch")
    weights = pytest.importorskip("headrace_embedded.weights")
    default = Path(tempfile.gettempdir()) / "headrace-test-models"
    path: Path = fetch.fetch(weights.SMOLLM2, Path(os.environ.get("HEADRACE_TEST_MODELS", default))).path
    return path


StartReal = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="session")
def start_real(model: Path) -> StartReal:
    """Runs a real llama.cpp with keys of an engine: gives its address."""

    @contextlib.contextmanager
    def start(**keys: Any) -> Iterator[str]:
        given = {"model": str(model), "alias": "smol", "threads": 1, "ctx_size": 1024, "parallel": 2, **keys}
        engine = EngineConfig(port=free_port(), command="", n_gpu_layers=0, **given)
        argv = [sys.executable, "-m", "headrace_llamacpp.server", *serve_command(engine).argv[-_given(engine) :]]
        with subprocess.Popen(argv, env={**os.environ, **environment(engine)}, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: process.poll() is not None or _answers(engine.url), "the start of llama.cpp")
                assert process.poll() is None
                yield engine.url
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(20)

    return start


def _given(engine: EngineConfig) -> int:
    """How many arguments follow the program."""
    argv = serve_command(engine).argv
    return len(argv) - argv.index("--model")


@pytest.fixture(scope="session")
def real(start_real: StartReal) -> Iterator[str]:
    """A real llama.cpp for all tests, which wants the key `kit.KEY`: its address."""
    from headrace.config import Secret

    with start_real(api_key=Secret(KEY)) as url:
        yield url


class Site:
    """A folder with a `llama-server` that does what it is told, and `headrace` commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "llama-server"
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKE} "$@"\n')
        self.program.chmod(0o755)
        self.mode = folder / "mode"
        self.model = folder / "m.gguf"
        self.model.write_bytes(b"GGUF\3\0\0\0")
        self.port, self.listen = free_port(), f"127.0.0.1:{free_port()}"
        self.config = folder / "headrace.toml"
        self._env = {"FAKE_LLAMA": str(self.mode)}

    def write(self, *tables: str, **keys: Any) -> None:
        """A configuration with one engine, `small`, and a model `chat` of it alone."""
        keys = {"model": str(self.model), "port": self.port, "command": str(self.program), "env": self._env, **keys}
        engine = "\n".join(f"{key} = {_toml(value)}" for key, value in keys.items() if value is not None)
        self.config.write_text(
            f'[server]\nlisten = "{self.listen}"\nanonymous = true\nstate_dir = "{self.folder}/s"\n'
            '[backends.local]\nprovider = "llamacpp"\noptions = { engine = "small" }\n'
            f'[models.chat]\ntargets = ["local"]\n[plugins.llamacpp.engines.small]\n{engine}\n' + "\n".join(tables)
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "headrace", "--config", str(self.config), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=90,
        )

    def spawn(self) -> subprocess.Popen[bytes]:
        """The stand-in by itself, once it listens."""
        argv = [str(self.program), "--host", "127.0.0.1", "--port", str(self.port)]
        child = subprocess.Popen(argv, env={**os.environ, **self._env}, stderr=subprocess.DEVNULL)
        until(lambda: child.poll() is not None or _listens(self.port), "the stand-in's port")
        return child

    @contextlib.contextmanager
    def up(self, slow_until: str = "") -> Iterator[httpx.Client]:
        """`headrace up`, once it is ready; a client of it. The engine loads until that has been told."""
        if slow_until:
            self.mode.write_text("slow")
        with (
            (self.folder / "stderr").open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", "headrace", "--config", str(self.config), "up"],
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=stderr,
            ) as child,
        ):
            try:
                with httpx.Client(base_url=f"http://{self.listen}", trust_env=False, timeout=60) as client:
                    until(lambda: child.poll() is not None or slow_until in self.said, slow_until)
                    self.mode.unlink(missing_ok=True)
                    until(lambda: child.poll() is not None or "ready after" in self.said, "readiness")
                    assert child.poll() is None, self.said
                    yield client
            finally:
                child.send_signal(signal.SIGTERM)
                child.wait(40)

    @property
    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def started(self) -> Any:
        """How the stand-in was started."""
        return json.loads(Path(f"{self.mode}.start.json").read_text())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Site(Path(folder))


@pytest.fixture
def kit() -> Any:
    """The helpers of this file, for tests to use."""
    return SimpleNamespace(until=until, free_port=free_port, KEY=KEY)
