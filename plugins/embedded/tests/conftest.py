"""The real model, fetched once for all runs, and a real engine process for the whole session."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace_embedded import EmbeddedConfig
from headrace_embedded.fetch import fetch
from headrace_embedded.health import is_ready
from headrace_embedded.process import engine_argv
from headrace_embedded.weights import SMOLLM2

START_SECONDS = 90


class Engine:
    """An engine process and the ways to talk to it."""

    def __init__(self, config: EmbeddedConfig, model: Path, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(engine_argv(config, model, path), stderr=subprocess.PIPE)
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://engine", timeout=120)

    def wait_ready(self) -> float:
        started = time.perf_counter()
        until(self.is_ready, START_SECONDS, lambda: f"engine not ready, exit status {self.process.poll()}")
        return time.perf_counter() - started

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.stderr.read().decode()  # type: ignore[union-attr]
        return asyncio.run(is_ready(self.path))

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, json=fields)

    def chat(self, text: str, **fields: Any) -> Any:
        response = self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, **fields: Any) -> list[Any]:
        """Every event of a stream, decoded; the closing `[DONE]` as a string."""
        with self.client.stream("POST", path, json={**fields, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream"), response.read()
            return [decoded(line) for line in response.iter_lines() if line]

    def open(self, path: str, **fields: Any) -> socket.socket:
        """Send a request and return its connection, nothing read yet."""
        body = json.dumps(fields).encode()
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(self.path))
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: engine\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body))
        )
        connection.sendall(body)
        return connection

    @property
    def busy(self) -> int:
        busy: int = self.client.get("/health").json()["slots"]["busy"]
        return busy

    def counters(self) -> dict[str, float]:
        """llama.cpp's own counters."""
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.removeprefix("llamacpp:").split() for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def is_idle(self) -> bool:
        counters = self.counters()
        return counters["requests_processing"] == counters["requests_deferred"] == 0

    def stop(self) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stderr.close()  # type: ignore[union-attr]


def decoded(line: str) -> Any:
    data = line.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def until(condition: Callable[[], bool], seconds: float, told: Callable[[], str] = lambda: "too late") -> float:
    """Wait for something outside to become true; returns how long that took."""
    started = time.perf_counter()
    while not condition():
        assert time.perf_counter() - started < seconds, told()
        time.sleep(0.005)
    return time.perf_counter() - started


@pytest.fixture(scope="session")
def model_state() -> Path:
    """A state directory with the model in it. Kept outside the repository, so that a second run is instant."""
    default = Path(tempfile.gettempdir()) / "headrace-test-models"
    directory = Path(os.environ.get("HEADRACE_TEST_MODELS", default))
    fetch(SMOLLM2, directory)
    return directory


@pytest.fixture(scope="session")
def model(model_state: Path) -> Path:
    return model_state / "models" / SMOLLM2.file


StartEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def start_engine(model: Path) -> Iterator[StartEngine]:
    """Start engines with one thread, which stays predictable on a busy machine."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory, contextlib.ExitStack() as engines:
        count = iter(range(1000))

        def start(path: Path | None = None, **options: Any) -> Engine:
            config = EmbeddedConfig(**{"threads": 1, **options})
            engine = Engine(config, model, path or Path(directory) / f"{next(count)}.sock")
            engines.callback(engine.stop)
            engine.wait_ready()
            return engine

        yield start


@pytest.fixture(scope="session")
def shared_engine(start_engine: StartEngine) -> Engine:
    return start_engine()


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    """The session's engine, with nothing left to do from the test before."""
    until(shared_engine.is_idle, 30)
    return shared_engine
