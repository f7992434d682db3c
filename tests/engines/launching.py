"""Gateways that start vLLM themselves: `headrace up` with the plugin `vllm`, behind nginx."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx

from headrace.testing import free_port

from ..processes import need, process_tree, until
from ..stack import Stack
from .asking import Caller
from .vllm import ENVIRONMENT, NAME, START_SECONDS, counted, leave_a_cpu

CONFIG = """
[server]
listen = "127.0.0.1:{core_port}"
state_dir = "{folder}/state"
shutdown_timeout = 5
[backends.own]
provider = "vllm"
options = {{ engine = "tiny" }}
[backends.style]
provider = "vllm"
options = {{ engine = "tiny" }}
model = "style"
{backends}
[models]
wheel = {{ targets = ["own"] }}
inline = {{ targets = ["own"], delivery = "inline" }}
style = {{ targets = ["style"] }}
{models}
[plugins.logs]
path = "log/requests.log"
[plugins.keys]
development_key = true
[plugins.health]
interval = 0.5
fast_interval = 0.2
discover = ["own"]
[plugins.vllm]
[plugins.vllm.engines.tiny]
model = "{model}"
served_model_name = "{name}"
python = "{python}"
port = {port}
dtype = "bfloat16"
max_model_len = 2048
max_num_seqs = 8
lora_modules = {{ style = "{model}-style" }}
runtime_lora = true
drain = 5
args = ["--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-lora-rank", "8",
    "--structured-outputs-config", '{{"backend":"xgrammar","disable_any_whitespace":true}}']
{engine}
[plugins.vllm.engines.tiny.env]
{environment}
[plugins.nginx]
port = {front}
required = true
workers = 1
{plugins}
"""
TWO = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""Each of two workers on a CPU of its own."""


class Site:
    """A running gateway with an engine of its own.

    Attributes:
        port: the engine's.
    """

    def __init__(self, stack: Stack, port: int) -> None:
        self.stack, self.port = stack, port
        self.log = stack.state / "log" / "vllm-tiny.log"

    def said(self, words: str) -> bool:
        return words in self.stack.launched.stderr

    def engine(self) -> dict[int, str]:
        """The engine's processes, as `process_tree` tells them, its keeper's among them."""
        tree = process_tree(self.stack.launched.child.pid)
        keeper = next(pid for pid in tree if b"headrace/keeper.py" in command(pid))
        return process_tree(keeper)

    def first(self) -> int:
        """The engine's first process."""
        return next(pid for pid in self.engine() if b"serve" in command(pid) and b"keeper.py" not in command(pid))

    def leave_a_cpu(self) -> None:
        """Keep the engine from one CPU, whose timing is looked at."""
        for pid in self.engine():
            leave_a_cpu(pid)

    @property
    def running(self) -> int:
        """Requests that the engine answers now, as it says."""
        return int(counted(httpx.get(f"http://127.0.0.1:{self.port}/metrics").text, "num_requests_running"))

    def at_rest(self) -> bool:
        return self.running == 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `headrace` command."""
        config = str(self.stack.folder / "headrace.toml")
        argv = [sys.executable, "-m", "headrace", "--config", config, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)

    @contextlib.contextmanager
    def calling(self) -> Iterator[Caller]:
        with self.stack.route("nginx").sdk() as client:
            yield Caller(self.stack, client)


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def make_model(python: Path, folder: Path) -> Path:
    """The tiny model, with an adapter beside it."""
    model, here = folder / "tiny", Path(__file__).parent
    environment = {**os.environ, **ENVIRONMENT}
    for script, arguments in (("tiny_model.py", [model]), ("tiny_adapter.py", [model, f"{model}-style"])):
        subprocess.run([python, here / script, *arguments], env=environment, capture_output=True, check=True)
    return model


@contextlib.contextmanager
def site(launch: Callable[..., Any], folder: Path, python: Path, model: Path, **more: Any) -> Iterator[Site]:
    """A gateway whose engine is ready. `more` is added to the configuration; `environment`, to the engine's."""
    need("nginx")
    own = {**ENVIRONMENT, **more.pop("environment", {})}
    tables = dict.fromkeys(("backends", "models", "engine", "plugins"), "") | more
    ports = {"front": free_port(), "core_port": free_port(), "port": free_port()}
    environment = "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    named = {"folder": folder, "python": python, "model": model, "name": NAME, "environment": environment}
    config = folder / "headrace.toml"
    config.write_text(CONFIG.format(**ports, **named, **tables))
    with launch(folder, "--config", str(config), "up") as launched:
        until(lambda: launched.stdout or launched.child.poll() is not None, "the engine's start", START_SECONDS)
        stack = Stack(launched, folder, ports["front"], cast(Any, (None, None)), "offload")
        made = Site(stack, ports["port"])
        until(lambda: _delivers(made), "nginx's delivering", 60)
        yield made


def _delivers(made: Site) -> bool:
    """Whether nginx delivers: it has to be seen to report first."""
    name = f"warm-up-{uuid.uuid4().hex}"
    body = {"model": "wheel", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    made.stack.route("nginx").post(body, name)
    return bool(made.stack.logged(name)["delivery"] == "offload")
