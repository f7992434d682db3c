"""A vLLM server as a process of the tests: its start, what it says of itself, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from headrace.testing import free_port

from ..processes import process_tree, still_there, until

NAME = "wheel"
"""What the model is called."""
START_SECONDS = 400.0
"""Most of a start is reading Python's modules: half a minute where nothing else runs, minutes where much does."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server takes the same core
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SEATS = 10
"""Requests that a server works on at the same time: the next ones wait."""


class Server:
    """One vLLM server. Its port is the same each time it is started.

    Args:
        python: of the environment that vLLM is installed in.
        model: the folder of the model.
        log: the file for what it says.
        length: tokens of the longest prompt and answer together.
    """

    def __init__(self, python: Path, model: Path, log: Path, length: int) -> None:
        self._python, self._model, self._log = python, model, log
        self.length = length
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._child: subprocess.Popen[bytes] | None = None
        self._tree: dict[int, str] = {}
        self._started = 0.0
        self._client = httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def start(self) -> None:
        """Begin to start it. Whoever needs it waits with `ready`."""
        self.end()
        command = [str(self._python), "-m", "vllm.entrypoints.cli.main", "serve", str(self._model)]
        command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "bfloat16", "--enforce-eager", "--enable-prompt-tokens-details"]
        command += ["--max-model-len", str(self.length), "--max-num-seqs", str(SEATS)]
        self._started = time.monotonic()
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                command, env={**os.environ, **ENVIRONMENT}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        leave_a_cpu(self._child.pid)

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs; of its engine that says nothing."""
        return self._child is not None and self._child.poll() is None

    def ready(self) -> Server:
        """Wait until it answers, with nothing to do; it is started if it does not run. Returns itself."""
        if not self.is_alive:
            self.start()

        def answers() -> bool:
            assert self.is_alive, f"vLLM has ended:\n{self._log.read_text(errors='replace')[-4000:]}"
            with contextlib.suppress(httpx.TransportError):
                return self._client.get("/health").status_code == 200
            return False

        if not answers():
            until(answers, "vLLM's start", START_SECONDS)
            self._warm_up()
            print(f"vLLM on port {self.port} was ready after {time.monotonic() - self._started:.0f} s")
        until(self.at_rest, "the engine's rest", 60)
        return self

    def _warm_up(self) -> None:
        """The first requests of each kind take their time."""
        for temperature in (0, 0.9):
            few = {"max_tokens": 4, "temperature": temperature}
            self.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], **few})
            self.ask("/v1/completions", {"prompt": "\n", **few})

    def ask(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Its answer to a request that no gateway has seen."""
        answer = self._client.post(path, json={"model": NAME, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def tokens(self, messages: list[dict[str, str]], *, answered: bool = False) -> list[int]:
        """The tokens of a conversation; `answered`: of one that ends with the model's words."""
        said = self.ask("/tokenize", {"messages": messages, "add_generation_prompt": not answered})
        return list(said["tokens"])

    def metric(self, name: str) -> float:
        """One of vLLM's own metrics, `num_requests_running` for instance, of all its engines."""
        return counted(self._client.get("/metrics").text, name)

    @property
    def running(self) -> int:
        return int(self.metric("num_requests_running"))

    @property
    def waiting(self) -> int:
        return int(self.metric("num_requests_waiting"))

    @property
    def block(self) -> int:
        """Tokens of a block of its KV cache: what is cached is whole blocks."""
        text = self._client.get("/metrics").text
        line = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
        return int(line.partition('block_size="')[2].partition('"')[0])

    def at_rest(self) -> bool:
        """Whether it has nothing to do."""
        return self.running == self.waiting == 0

    def signal(self, number: signal.Signals, *, engine: bool = False) -> None:
        """Signal its first process, or the one that computes."""
        assert self._child is not None
        pid, self._tree = self._child.pid, process_tree(self._child.pid)
        if engine:
            pid = next(each for each in self._tree if _command(each).startswith(b"VLLM::EngineCore"))
        os.kill(pid, number)

    def end(self) -> None:
        """End it and all of its processes."""
        if self._child is None:
            return
        tree = {**self._tree, **process_tree(self._child.pid)}  # some have lost their parent
        if self.is_alive:
            self._child.send_signal(signal.SIGCONT)
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(30)
        for pid in still_there(tree):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._child.wait(30)
        self._child, self._tree = None, {}

    def close(self) -> None:
        """End it, for good."""
        self.end()
        self._client.close()


def counted(metrics: str, name: str) -> float:
    """One of vLLM's metrics, of all its engines."""
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(f"vllm:{name}{{"))


def leave_a_cpu(pid: int) -> None:
    """Keep a process, and those it will start, from one CPU, if there are several.

    vLLM's engine waits by yielding its CPU over and over, and with some kernels (6.18) nobody else gets a turn for
    seconds then, not even the gateway's timers.
    """
    if hasattr(os, "sched_setaffinity"):
        everywhere = sorted(os.sched_getaffinity(0))
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), everywhere[:-1] or everywhere)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def servers(python: Path, folder: Path, lengths: dict[str, int]) -> Iterator[dict[str, Server]]:
    """Servers by name, all with the same tiny model, whose starts have begun."""
    model = folder / "model"
    environment = {**os.environ, **ENVIRONMENT}
    maker = Path(__file__).with_name("tiny_model.py")
    subprocess.run([python, maker, model], env=environment, capture_output=True, check=True)
    with contextlib.ExitStack() as ending:
        found = {name: Server(python, model, folder / f"{name}.log", length) for name, length in lengths.items()}
        for each in found.values():
            ending.callback(each.close)
            each.start()
        yield found


def table(found: dict[str, Server], more: str = "") -> str:
    """The table `[backends]`, once they are ready."""
    return "\n".join(
        f'{name} = {{ provider = "openai", base_url = "{each.ready().url}", model = "{NAME}"{more} }}'
        for name, each in found.items()
    )
