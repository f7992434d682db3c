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
from .config import EngineConfig, LlamacppConfig
from .log import CAUSES, MILESTONES

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway
    from headrace.models import Model
    from headrace.supervisor import Process

GRACE_SECONDS = 10.0
"""From SIGTERM to SIGKILL. llama.cpp cuts what it answers then."""
MAGIC = b"GGUF"
PLUGIN = "llamacpp"


def processes(config: LlamacppConfig, gateway: Gateway) -> Sequence[Process]:
    """The engines, to be started by the supervisor.

    Raises:
        PluginError: the port of one is taken, or its model is not there.
    """
    problems = [problem for name, engine in config.engines.items() for problem in _unready(name, engine)]
    if problems:
        raise PluginError(PLUGIN, "; ".join(problems))
    gateway.make_dirs()
    note_running(gateway, PLUGIN, digests(config))
    return [_process(name, engine, gateway) for name, engine in config.engines.items()]


def _unready(name: str, engine: EngineConfig) -> Iterator[str]:
    """Why an engine would not start."""
    place = f"[plugins.llamacpp.engines.{name}]"
    for key, path in (("model", engine.path), ("mmproj", Path(engine.mmproj).expanduser() if engine.mmproj else None)):
        try:
            if path is not None:
                with path.open("rb") as file:
                    if file.read(len(MAGIC)) != MAGIC:
                        yield f"{place} {key}: {path} is no GGUF file"
        except OSError as error:
            yield f"{place} {key}: {path} cannot be read: {error.strerror}"
    if trouble := trouble_at(engine.listen):
        yield f"{place}: {engine.listen}: {trouble}: set another `port` or `host`"


def _process(name: str, engine: EngineConfig, gateway: Gateway) -> Process:
    log = log_of(gateway, name)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    return engine_process(
        f"llamacpp {name}",
        serve_command(engine).argv,
        environment=environment(engine),
        log=log,
        listen=engine.listen,
        milestones=MILESTONES,
        causes=CAUSES,
        limit=engine.log_max_bytes,
        grace=GRACE_SECONDS,
        ready_timeout=engine.ready_timeout,
        essential=is_essential(name, gateway),
    )


def log_of(gateway: Gateway, name: str) -> Path:
    """Where an engine's log is."""
    return gateway.state_dir / "log" / f"llamacpp-{name}.log"


def check_reload(config: LlamacppConfig, gateway: Gateway) -> None:
    """Raises HeadraceError if other engines run than these."""
    refuse_changes(gateway, PLUGIN, digests(config))


def digests(config: LlamacppConfig) -> Mapping[str, str]:
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
