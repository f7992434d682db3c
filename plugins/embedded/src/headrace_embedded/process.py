"""The engine as a process that the supervisor keeps alive."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import PluginError
from headrace.supervisor import Process

from .health import is_ready
from .provider import socket_path
from .weights import WeightsError, label, require

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import EmbeddedConfig

STOP_SECONDS = 5.0
"""The engine ends its answers and goes at once; a step of computation may stand in the way."""


def engine_process(config: EmbeddedConfig, gateway: Gateway) -> Process:
    """The engine's command line and how to tell that it is ready.

    Raises:
        PluginError: the model's file is not there.
    """
    try:
        model = require(config.model, gateway.state_dir)
    except WeightsError as error:
        raise PluginError("embedded", str(error)) from error
    gateway.make_dirs()
    socket = socket_path(gateway)
    return Process(
        name="embedded engine",
        argv=engine_argv(config, model, socket),
        ready=functools.partial(is_ready, socket),
        ready_timeout=config.ready_timeout,
        stop_timeout=STOP_SECONDS,
    )


def engine_argv(config: EmbeddedConfig, model: Path, socket: Path) -> Sequence[str]:
    """How to start the engine. `-P` keeps modules of the working directory out of it."""
    options = {
        "socket": socket,
        "model": model,
        "name": config.name or label(config.model),
        "threads": config.threads or spare_cores(),
        "context": config.context,
        "parallel": config.parallel,
        "batch": config.batch,
    }
    argv = [sys.executable, "-P", "-m", "headrace_embedded.engine"]
    argv += [f"--{key}={value}" for key, value in options.items()]
    return [*argv, "--embeddings", f"--pooling={config.pooling}"] if config.embeddings else argv


def spare_cores() -> int:
    """The cores this process may use, but one, which nginx and the core need."""
    return max(1, _cores() - 1)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what taskset and containers allow, not what the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
