"""The engine as a process: how it starts, how it ends, and what its clients see of that."""

from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

CHAT = "/v1/chat/completions"
ENDLESS = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "ignore_eos": True, "stream": True}
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
time.sleep(600)
"""


def read_events(engine: Any, after: Any) -> tuple[str, Exception | None]:
    """Read a stream to its end, doing `after` once it has begun; what came, and how the connection ended."""
    text, error = "", None
    with engine.client.stream("POST", CHAT, json=ENDLESS) as response:
        try:
            for part in response.iter_text():
                if not text:
                    after()
                text += part
        except httpx.TransportError as broken:
            error = broken
    return text, error


def test_the_socket_is_for_its_owner_alone_and_gone_when_the_engine_is(start_engine: Any) -> None:
    engine = start_engine()
    assert stat.S_IMODE(engine.path.stat().st_mode) == 0o600
    assert engine.stop() == 0
    assert not engine.path.exists()


def test_sigterm_cuts_an_open_stream_and_never_calls_it_done(start_engine: Any) -> None:
    engine = start_engine()
    started = []

    def terminate() -> None:
        started.append(time.perf_counter())
        engine.process.send_signal(signal.SIGTERM)

    text, error = read_events(engine, terminate)
    assert engine.process.wait(20) == 0
    seconds = time.perf_counter() - started[0]
    print(f"ended {seconds * 1000:.0f} ms after SIGTERM")
    assert error is None
    assert '"code":"engine_stopping"' in text
    assert "[DONE]" not in text
    assert seconds < 5


def test_a_killed_engine_cuts_its_streams_and_the_next_one_takes_its_socket(start_engine: Any) -> None:
    engine = start_engine()
    text, error = read_events(engine, engine.process.kill)
    assert engine.process.wait(20) == -signal.SIGKILL
    assert isinstance(error, httpx.RemoteProtocolError)
    assert "data: " in text
    assert "[DONE]" not in text
    assert engine.path.exists(), "a killed process cannot tidy up"
    again = start_engine(engine.path)
    assert again.chat("Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    again.stop()


def test_sigterm_just_before_the_engine_listens_ends_it_in_good_order(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "e.sock"
    command = [sys.executable, "-P", "-m", "headrace_embedded.engine", f"--socket={path}", f"--model={model}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as engine:
        wait(path.exists, 60)
        engine.send_signal(signal.SIGTERM)
        _, said = engine.communicate(timeout=20)
    assert (engine.returncode, said) == (0, "")
    assert not path.exists()


def test_an_engine_leaves_the_socket_of_a_living_one_alone(engine: Any, model: Path) -> None:
    second = run_engine(engine.path, model)
    assert second.returncode == 1
    assert "another process listens" in second.stderr
    assert engine.is_ready()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_ends_when_its_parent_dies(tmp_path: Path, model: Path, engine: Any, sign: signal.Signals) -> None:
    arguments = [str(part) for part in engine.process.args if not str(part).startswith("--socket")]
    path = tmp_path / "e.sock"
    with subprocess.Popen([sys.executable, "-c", PARENT, *arguments, f"--socket={path}"], stdout=subprocess.PIPE) as up:
        assert up.stdout is not None
        child = int(up.stdout.readline())
        wait(path.exists, 60)
        up.send_signal(sign)
        up.wait()
        started = time.perf_counter()
        wait(lambda: not is_running(child), 20)
    print(f"ended {time.perf_counter() - started:.2f} s after its parent")
    assert not path.exists()


def is_running(pid: int) -> bool:
    """Whether a process that is not our child still runs; one that nobody reaps does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait(condition: Any, seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def run_engine(path: Path, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "headrace_embedded.engine", f"--socket={path}", f"--model={model}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_file_that_is_no_model_ends_the_engine_with_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    ended = run_engine(tmp_path / "e.sock", broken)
    assert ended.returncode == 1
    assert "llama.cpp cannot load" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_embeddings_of_a_chat_model_need_a_pooling(tmp_path: Path, model: Path) -> None:
    ended = run_engine(tmp_path / "e.sock", model, "--embeddings", "--context=512")
    assert ended.returncode == 1
    assert 'pooling = "mean"' in ended.stderr


def test_llama_cpps_own_http_server_is_locked(engine: Any) -> None:
    """It listens on a loopback port and cannot be turned off; without its random key it must tell nothing."""
    ports = listening_ports(engine.process.pid)
    assert len(ports) == 1
    with httpx.Client(base_url=f"http://127.0.0.1:{ports.pop()}") as stranger:
        for path in ("/v1/models", "/props", "/slots", "/metrics"):
            assert stranger.get(path).status_code == 401
        assert stranger.post(CHAT, json=ENDLESS).status_code == 401


def listening_ports(pid: int) -> set[int]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        if found:
            inodes.add(found[1])
    rows = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}
