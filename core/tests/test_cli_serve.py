"""`headrace serve` and `headrace up` as processes: what they print, that they answer, and how they end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.testing import FakeBackend, free_port

PATIENCE = 60.0
WORKING = '[server]\nlisten = "127.0.0.1:0"\nanonymous = true\n[plugins.openai]\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and nothing in the environment that changes what is run."""
    for name in ("HEADRACE_CONFIG", "HEADRACE_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(text: str) -> str:
    Path("gateway.toml").write_text(text, "utf-8")
    return "gateway.toml"


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "headrace", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def stop(child: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """End a child; its exit status and the rest of what it wrote on stderr."""
    child.send_signal(number)
    _, rest = child.communicate(timeout=PATIENCE)
    return child.returncode, rest


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stderr is not None
    return child.stderr.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_listens_answers_there_and_stops_when_told(number: signal.Signals) -> None:
    name = configured(WORKING)
    with process("serve", "--config", name) as child:
        found = re.fullmatch(r"headrace: listening on (http://127\.0\.0\.1:[1-9][0-9]*)\n", first_line(child))
        assert found
        assert httpx.get(f"{found[1]}/health/live", trust_env=False, timeout=PATIENCE).status_code == 200
        assert stop(child, number) == (0, "")


def test_serve_may_listen_on_a_unix_socket(folder: Path) -> None:
    name = configured(WORKING.replace("127.0.0.1:0", "unix:gateway.sock"))
    with process("serve", "--config", name) as child:
        assert "unix:gateway.sock" in (line := first_line(child)) and "http" not in line
        with httpx.Client(transport=httpx.HTTPTransport(uds="gateway.sock"), timeout=PATIENCE) as client:
            assert client.get("http://gateway/health/live").status_code == 200
        assert stop(child)[0] == 0


def test_serve_says_that_its_port_is_taken_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with process("serve", "--config", configured(f'[server]\nlisten = "{address}"')) as child:
            _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert said.startswith(f"Error: cannot listen on {address}: another program listens there")
    assert said.count("\n") == 1


def test_serve_does_not_say_that_it_listens_when_a_plugin_cannot_start() -> None:
    Path("file").touch()
    name = configured('[server]\nlisten = "127.0.0.1:0"\n[plugins.logs]\npath = "../file/below/requests.log"')
    with process("serve", "--config", name) as child:
        _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 1
    assert said.startswith("Error: plugin 'logs'")
    assert said.count("\n") == 1


@pytest.mark.parametrize("key", ["startup_timeout", "shutdown_timeout", "body_timeout"])
def test_a_time_without_end_is_refused_or_works(key: str) -> None:
    name = configured(WORKING.replace("[plugins", f"{key} = inf\n[plugins"))
    result = CliRunner().invoke(main, ["config", "check", name])
    assert isinstance(result.exception, SystemExit | None)
    if result.exit_code == 0:
        with process("serve", "--config", name) as child:
            assert "listening on" in first_line(child)
            assert stop(child) == (0, "")


def test_a_second_gateway_in_the_same_place_is_refused_while_the_first_goes_on() -> None:
    name = configured(WORKING)
    with process("serve", "--config", name) as first, process("serve", "--config", name) as second:
        lines = [first_line(first), first_line(second)]
        refused, serving = (second, first) if lines[1].startswith("Error: ") else (first, second)
        assert refused.wait(PATIENCE) == 1
        assert stop(serving) == (0, "")
    assert sorted(line.partition(": ")[0] for line in lines) == ["Error", "headrace"]


def test_a_gateway_that_comes_later_is_told_that_another_one_listens() -> None:
    name = configured(WORKING)
    with process("serve", "--config", name) as first:
        assert "listening on" in first_line(first)
        with process("serve", "--config", name) as second:
            _, said = second.communicate(timeout=PATIENCE)
        assert (second.returncode, "another gateway listens on" in said) == (1, True)
        assert stop(first) == (0, "")


@pytest.mark.parametrize("as_json", [False, True])
async def test_up_prints_one_ready_line_answers_and_stops_when_told(as_json: bool) -> None:
    async with FakeBackend() as backend:
        name = configured(
            f'[server]\nanonymous = true\nlisten = "127.0.0.1:{free_port()}"\n[plugins.openai]\n'
            f'[models.test]\ntargets = [{{ provider = "openai", base_url = "{backend.url}", model = "fake-model" }}]\n'
        )
        with process("up", "--config", name, *(["--json"] if as_json else [])) as child:
            assert child.stdout is not None
            line = await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), PATIENCE)
            ready = json.loads(line) if as_json else dict(re.findall(r"(\w+)=(\S*)", line.removeprefix("READY ")))
            assert (ready["key"], ready["model"]) == ("", "test")
            async with httpx.AsyncClient(base_url=ready["url"], trust_env=False, timeout=PATIENCE) as client:
                assert (await client.get("models")).json()["data"][0]["id"] == "test"
            code, said = await asyncio.to_thread(stop, child)
    assert code == 0
    assert said.endswith("headrace: stopped\n")
