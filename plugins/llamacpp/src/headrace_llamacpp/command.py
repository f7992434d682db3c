"""How an engine is started: `llama-server …`, and what is in its environment."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from .config import EngineConfig

PROGRAM = "llama-server"
FLAGS = {
    "ctx_size": "--ctx-size",
    "parallel": "--parallel",
    "n_gpu_layers": "--n-gpu-layers",
    "threads": "--threads",
    "batch_size": "--batch-size",
    "ubatch_size": "--ubatch-size",
    "flash_attn": "--flash-attn",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
    "pooling": "--pooling",
}


class Command(msgspec.Struct, frozen=True):
    """A command line, and the variables it needs beside those there are."""

    argv: tuple[str, ...]
    secrets: tuple[str, ...] = ()
    """Names of variables that are not shown."""

    def shown(self) -> str:
        """As it can be pasted into a shell in which the secrets are set."""
        return " ".join((*(f'{name}="${name}"' for name in self.secrets), shlex.join(self.argv)))


def find_program(engine: EngineConfig) -> list[str]:
    """The program that runs llama.cpp: as configured, on the PATH, in our own Python, or `llama-server` for somebody to
    find."""
    if engine.command:
        return [_expanded(engine.command)]
    found = shutil.which(PROGRAM)
    if found is None and importlib.util.find_spec("xllamacpp") is not None:
        return [sys.executable, "-m", "headrace_llamacpp.server"]
    return [found or PROGRAM]


def _expanded(path: str) -> str:
    """A path from the home directory, or from here, as a whole one; a mere name is looked for on the PATH."""
    return str(Path(path).expanduser().absolute()) if os.sep in path or path.startswith("~") else path


def serve_command(engine: EngineConfig) -> Command:
    """The server, as the gateway starts it."""
    secrets = (*(["LLAMA_API_KEY"] if engine.api_key else []), *engine.env)
    return Command((*find_program(engine), *_arguments(engine)), secrets)


def environment(engine: EngineConfig) -> Mapping[str, str]:
    """Every variable of its own, secrets too."""
    key = {"LLAMA_API_KEY": engine.api_key.reveal()} if engine.api_key else {}
    return {**key, **{name: value.reveal() for name, value in engine.env.items()}}


def _arguments(engine: EngineConfig) -> Iterator[str]:
    yield from ("--model", str(engine.path), "--alias", engine.served_name)
    if engine.mmproj:
        yield from ("--mmproj", _expanded(engine.mmproj))
    for key, flag in FLAGS.items():
        value = getattr(engine, key)
        if value is not None:
            yield from (flag, str(value))
    if engine.embeddings:
        yield "--embeddings"
    yield from ("--host", engine.host, "--port", str(engine.port))
    yield from ("--metrics", "--no-webui")  # routing reads how busy it is; the playground has a page already
    yield from engine.args
