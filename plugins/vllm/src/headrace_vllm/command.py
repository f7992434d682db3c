"""How an engine is started: `vllm serve …`, and what is in its environment."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from .config import EngineConfig

RAY_PORT = 6379
FLAGS = {
    "tensor_parallel_size": "--tensor-parallel-size",
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
}
SWITCHES = {
    "enable_chunked_prefill": "enable-chunked-prefill",
    "enable_prefix_caching": "enable-prefix-caching",
}


class Command(msgspec.Struct, frozen=True):
    """A command line, and the variables it needs beside those there are."""

    argv: tuple[str, ...]
    environment: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    """Names of variables that are not shown."""

    def shown(self) -> str:
        """As it can be pasted into a shell in which the secrets are set."""
        plain = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join((*plain, *(f'{name}="${name}"' for name in self.secrets), shlex.join(self.argv)))


def find_vllm(engine: EngineConfig) -> list[str]:
    """The program that runs vLLM: as configured, beside our own Python, on the PATH, or `vllm` for somebody to find."""
    if engine.python:
        return [_expanded(engine.python), "-m", "vllm.entrypoints.cli.main"]
    if engine.command:
        return [_expanded(engine.command)]
    beside = Path(sys.executable).with_name("vllm")
    return [str(beside) if os.access(beside, os.X_OK) else shutil.which("vllm") or "vllm"]


def _expanded(path: str) -> str:
    """A path from the home directory, or from here, as a whole one; a mere name is looked for on the PATH."""
    return str(Path(path).expanduser().absolute()) if os.sep in path or path.startswith("~") else path


def _at_home(path: str) -> str:
    """vLLM itself knows no `~`."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def serve_command(engine: EngineConfig) -> Command:
    """`vllm serve`, as the gateway starts it."""
    own = own_environment(engine)
    secrets = (*(["VLLM_API_KEY"] if engine.api_key else []), *engine.env)
    shown = {name: value for name, value in own.items() if name not in engine.env}
    return Command((*find_vllm(engine), "serve", *_arguments(engine)), shown, secrets)


def environment(engine: EngineConfig) -> Mapping[str, str]:
    """Every variable of its own, secrets too."""
    key = {"VLLM_API_KEY": engine.api_key.reveal()} if engine.api_key else {}
    return {**own_environment(engine), **key, **{name: value.reveal() for name, value in engine.env.items()}}


def own_environment(engine: EngineConfig) -> dict[str, str]:
    """The variables that are no secrets."""
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, engine.devices))} if engine.devices else {}
    lora = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if engine.runtime_lora else {}
    sleep = {"VLLM_SERVER_DEV_MODE": "1"} if engine.sleep_mode else {}
    return {**devices, **lora, **sleep}


def _arguments(engine: EngineConfig) -> Iterator[str]:
    yield _at_home(engine.model)
    if engine.served_model_name:
        yield from ("--served-model-name", *engine.served_names)
    yield from ("--host", engine.host, "--port", str(engine.port))
    defaults = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    for key, flag in FLAGS.items():
        value = getattr(engine, key)
        if value is not None and value != defaults.get(key):
            yield from (flag, str(value))
    for key, switch in SWITCHES.items():
        value = getattr(engine, key)
        if value is not None:
            yield f"--{switch}" if value else f"--no-{switch}"
    if (engine.lora_modules or engine.runtime_lora) and "--enable-lora" not in engine.args:
        yield "--enable-lora"
    if engine.lora_modules:
        yield from ("--lora-modules", *(f"{name}={_at_home(path)}" for name, path in engine.lora_modules.items()))
    if engine.sleep_mode:
        yield "--enable-sleep-mode"
    if engine.nodes > 1:
        yield from ("--distributed-executor-backend", "ray")
    if engine.drain:
        yield from ("--shutdown-timeout", str(max(1, round(engine.drain))))
    yield from engine.args


def head_commands(engine: EngineConfig) -> Sequence[Command]:
    """What runs on the machine of the gateway, if there are several: Ray's head, then the engine."""
    return [_ray(engine, "--head", f"--port={RAY_PORT}"), serve_command(engine)]


def worker_commands(engine: EngineConfig, head: str) -> Sequence[Command]:
    """What runs on each of the others."""
    address = f"[{head}]" if ":" in head else head
    return [_ray(engine, f"--address={address}:{RAY_PORT}", "--block")]


def _ray(engine: EngineConfig, *arguments: str) -> Command:
    """Ray passes its own environment on to what it starts."""
    own = own_environment(engine)
    return Command(("ray", "start", *arguments), own, tuple(engine.env))
