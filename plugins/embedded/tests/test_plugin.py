"""The plugin inside a gateway: its configuration, its provider, its health check, its supervised process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.config import BackendConfig
from headrace.errors import ConfigError, PluginError
from headrace.exchange import Attempt, Exchange, Reply
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.supervisor import Process, Supervisor
from headrace_embedded import EmbeddedConfig
from headrace_embedded.process import spare_cores
from headrace_embedded.weights import SMOLLM2

BODY = b'{"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}'


def gateway(state: Path, backend: dict[str, Any] | None = None, **options: Any) -> Gateway:
    document = {
        "server": {"state_dir": str(state)},
        "backends": {"small": {"provider": "embedded", **(backend or {})}},
        "models": {"chat": {"targets": ["small"]}},
        "plugins": {"embedded": options},
    }
    return Gateway(parse(document)).assemble()


@pytest.fixture
def state(model: Path) -> Iterator[Path]:
    """A state directory of its own, short enough for sockets, with the fetched model in it."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
        (Path(directory) / "models").mkdir()
        (Path(directory) / "models" / SMOLLM2.file).symlink_to(model)
        yield Path(directory)


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def supervised(processes: list[Process], said: list[str]) -> AsyncIterator[None]:
    ready = asyncio.Event()
    supervisor = Supervisor(processes, said.append)

    async def on_ready() -> None:
        ready.set()

    running = asyncio.create_task(supervisor.run(on_ready))
    try:
        await until(lambda: ready.is_set() or running.done())
        yield
    finally:
        supervisor.stop.set()
        await running


async def ask(gate: Gateway, body: bytes = BODY) -> Reply:
    endpoint = gate.endpoints["/v1/chat/completions"]
    scope: dict[str, Any] = {"headers": [], "method": "POST", "path": endpoint.path, "client": None}
    exchange = Exchange(id="test", endpoint=endpoint, scope=scope, body=body)
    exchange.peek = endpoint.read(body)
    provider = gate.providers["embedded"]
    attempt = Attempt(exchange, 1, gate.models.find("chat").targets[0], provider)
    attempt.request = provider.build(attempt)
    return await provider.send(attempt)


async def test_a_supervised_engine_answers_and_comes_back_after_a_crash(state: Path) -> None:
    said: list[str] = []
    gate = gateway(state, threads=1)
    (process,) = gate.hooks.processes(gate)
    started = asyncio.get_running_loop().time()
    async with supervised([recorded(process, state)], said), gate.running():
        print(f"ready {asyncio.get_running_loop().time() - started:.1f} s after its start")
        target = gate.models.find("chat").targets[0]
        check = gate.health_checks["embedded"].check
        assert (await check(target)).ok
        assert await gate.providers["embedded"].models(target) == ["smollm2"]
        reply = await ask(gate)
        assert msgspec.json.decode(reply.content or b"")["usage"]["completion_tokens"] == 3

        stream = await ask(gate, BODY.replace(b'"max_tokens": 3', b'"max_tokens": 4000, "stream": true'))
        assert stream.is_event_stream and stream.stream is not None
        text = await anext(stream.stream)
        kill(state)
        with pytest.raises(Exception, match="connection to the backend broke"):
            async for chunk in stream.stream:
                text += chunk
        assert b"[DONE]" not in text
        await stream.aclose()

        await until(lambda: "embedded engine is back" in said)
        assert (await ask(gate)).status == 200
    health = await check(target)
    assert not health.ok
    assert health.reason.startswith("starting")


def recorded(process: Process, state: Path) -> Process:
    """The same process, which writes down its id: the supervisor does not tell."""
    note = f"import os, pathlib, sys; pathlib.Path({str(state / 'pid')!r}).write_text(str(os.getpid())); "
    return msgspec.structs.replace(
        process, argv=[sys.executable, "-c", note + "os.execv(sys.argv[1], sys.argv[1:])", *process.argv]
    )


def kill(state: Path) -> None:
    import os
    import signal

    os.kill(int((state / "pid").read_text()), signal.SIGKILL)


def test_a_missing_model_says_which_command_gets_it(tmp_path: Path) -> None:
    gate = gateway(tmp_path)
    with pytest.raises(PluginError, match="run: headrace embedded fetch"):
        gate.hooks.processes(gate)
    own = gateway(tmp_path, model=str(tmp_path / "own.gguf"))
    with pytest.raises(PluginError, match=r"own\.gguf is not there"):
        own.hooks.processes(own)
    (tmp_path / "own.gguf").write_text("hello")
    with pytest.raises(PluginError, match="is not a GGUF file"):
        own.hooks.processes(own)


def test_a_half_written_model_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / SMOLLM2.file).write_bytes(b"GGUF")
    gate = gateway(tmp_path)
    with pytest.raises(PluginError, match="is incomplete"):
        gate.hooks.processes(gate)


def test_the_engine_is_started_with_what_the_configuration_says(tmp_path: Path) -> None:
    own = tmp_path / "My-Model.gguf"
    own.write_bytes(b"GGUF")
    gate = gateway(tmp_path, model=str(own), threads=3, context=1000, embeddings=True, pooling="mean")
    (process,) = gate.hooks.processes(gate)
    assert process.role == "engine"
    given = set(process.argv)
    assert {"--name=My-Model", "--threads=3", "--context=1000", "--embeddings", "--pooling=mean"} <= given
    assert f"--socket={gate.runtime_dir / 'embedded.sock'}" in given
    (default,) = gateway(tmp_path, model=str(own)).hooks.processes(gate)
    assert f"--threads={spare_cores()}" in default.argv
    assert spare_cores() >= 1


@pytest.mark.parametrize(
    "given", [{"base_url": "http://a"}, {"api_key": "k"}, {"options": {"a": 1}}, {"proxy": "http://p"}]
)
def test_a_backend_that_says_where_the_engine_is_gets_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not for the provider 'embedded'"):
        gateway(tmp_path, given)


def test_a_backend_needs_nothing_but_the_providers_name(tmp_path: Path) -> None:
    gate = gateway(tmp_path)
    target = gate.providers["embedded"].target("small", BackendConfig(provider="embedded"))
    assert (target.base_url, target.socket) == ("http://localhost/v1", str(gate.runtime_dir / "embedded.sock"))


def test_embedding_requests_go_to_an_engine_that_gives_them_and_to_no_other(tmp_path: Path) -> None:
    assert "embeddings" not in gateway(tmp_path).providers["embedded"].endpoints
    assert "embeddings" in gateway(tmp_path, embeddings=True).providers["embedded"].endpoints


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"context": 1}, {"parallel": 0}, {"batch": 0}, {"pooling": "sum"}, {"modle": "x"}]
)
def test_a_wrong_setting_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        gateway(tmp_path, **wrong)


def test_every_setting_has_a_default() -> None:
    assert EmbeddedConfig().parallel >= 2, "one long stream must not keep another client waiting"
