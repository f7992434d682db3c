"""The engines as processes that the supervisor keeps alive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.engines import engine_process, note_running, refuse_changes, trouble_at
from headrace.errors import PluginError

from .command import environment, serve_command
from .config import EngineConfig, VllmConfig
from .log import CAUSES, MILESTONES

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway
    from headrace.models import Model
    from headrace.supervisor import Process

MARGIN_SECONDS = 10.0
"""What vLLM may take to end beyond its drain."""
PLUGIN = "vllm"


def processes(config: VllmConfig, gateway: Gateway) -> Sequence[Process]:
    """The engines, to be started by the supervisor.

    Raises:
        PluginError: one cannot listen where it is to.
    """
    troubles = {name: trouble for name, engine in config.engines.items() if (trouble := trouble_at(engine.listen))}
    if troubles:
        told = "; ".join(f"engine {name!r}, {config.engines[name].listen}: {why}" for name, why in troubles.items())
        raise PluginError(PLUGIN, f"{told}: set another `port` or `host`")
    gateway.make_dirs()
    note_running(gateway, PLUGIN, digests(config))
    return [_process(name, engine, gateway) for name, engine in config.engines.items()]


def _process(name: str, engine: EngineConfig, gateway: Gateway) -> Process:
    log = log_of(gateway, name)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    return engine_process(
        f"vllm {name}",
        serve_command(engine).argv,
        environment=environment(engine),
        log=log,
        listen=engine.listen,
        milestones=MILESTONES,
        causes=CAUSES,
        limit=engine.log_max_bytes,
        grace=engine.drain + MARGIN_SECONDS,
        ready_timeout=engine.ready_timeout,
        essential=is_essential(name, gateway),
    )


def log_of(gateway: Gateway, name: str) -> Path:
    """Where an engine's log is."""
    return gateway.state_dir / "log" / f"vllm-{name}.log"


def check_reload(config: VllmConfig, gateway: Gateway) -> None:
    """Raises HeadraceError if other engines run than these."""
    refuse_changes(gateway, PLUGIN, digests(config))


def digests(config: VllmConfig) -> Mapping[str, str]:
    """What each engine is started with, in a form that tells no secrets."""
    return {name: _digest(engine) for name, engine in config.engines.items()}


def _digest(engine: EngineConfig) -> str:
    parts = (serve_command(engine).argv, sorted(environment(engine).items()))
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def is_essential(name: str, gateway: Gateway) -> bool:
    """Whether there is a model that nobody but this engine answers."""
    return any(_leans_on(name, model, gateway) for model in gateway.models)


def _leans_on(name: str, model: Model, gateway: Gateway) -> bool:
    engines = [engine_of(target) for target in _all_targets(model, gateway)]
    return name in engines and set(engines) == {name}


def _all_targets(model: Model, gateway: Gateway) -> Iterator[Target]:
    yield from model.targets
    for fallback in model.fallbacks:
        yield from gateway.models.find(fallback).targets


def engine_of(target: Target) -> str | None:
    """The name of the engine behind a target, if it is one of ours."""
    name = target.options.get("engine") if target.provider == PLUGIN else None
    return None if name is None else str(name)
