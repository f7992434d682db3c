"""`headrace up`: engines, core and front server under one supervisor, and the lines it prints."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from .engines import forget_running
from .gateway import Gateway
from .reload import on_change, reload
from .sockets import bind, held
from .supervisor import Process, Supervisor

READY_POLL_SECONDS = 0.1
MENTION_SECONDS = 5.0
"""How often an unready backend is mentioned."""


class Answer(msgspec.Struct):
    """A status and a JSON body, read from the core's socket."""

    status: int
    body: bytes


async def up(gateway: Gateway, path: Path, *, as_json: bool) -> None:
    """Run everything until SIGINT or SIGTERM.

    Raises:
        ProcessFailed: something could not be started.
        CannotListen: the core's address is taken, or another gateway runs in this state directory.
        PluginError, HeadraceError: a plugin cannot say what to run.
    """
    gateway.make_dirs()
    refusal = f"another gateway runs in {gateway.state_dir}: stop it, or set another server.state_dir"
    with held(gateway.runtime_dir / "up.lock", refusal):
        await _up(gateway, path, as_json=as_json)


async def _up(gateway: Gateway, path: Path, *, as_json: bool) -> None:
    started = time.perf_counter()
    forget_running(gateway)
    beside = gateway.hooks.processes(gateway)
    front = any(process.role == "front" for process in beside)
    if not front:
        bind(gateway.config.server.listen).close()  # a taken port is told of before engines start
    supervisor = Supervisor([*beside, *core_processes(gateway, path, front=front)], say, lambda: reload(path, say))
    supervisor.install_signals()

    async def on_ready() -> None:
        await until_ready(gateway)
        announce(gateway, time.perf_counter() - started, as_json=as_json)

    async with watched(gateway, path, supervisor.hang_up):
        await supervisor.run(on_ready)
    say("stopped")


@contextlib.asynccontextmanager
async def watched(gateway: Gateway, path: Path, changed: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Tell when the configuration's file changes, if that is wanted."""
    if not gateway.config.server.reload_on_change:
        yield
        return
    watching = asyncio.create_task(on_change(path, changed), name="headrace-watch")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def core_processes(gateway: Gateway, path: Path, *, front: bool) -> list[Process]:
    """The core as child processes: as many workers as are wanted, if there is a front server to share out the work."""
    workers = gateway.config.server.workers
    if front:
        return [core_process(gateway, path, worker, ("--socket-only",)) for worker in range(workers)]
    if workers > 1:
        say("server.workers needs nginx in front: one core process runs")
    return [core_process(gateway, path, 0, ())]


def core_process(gateway: Gateway, path: Path, worker: int, options: tuple[str, ...]) -> Process:
    """One worker of the core."""
    chosen = (*options, "--worker", str(worker)) if worker else options
    return Process(
        name=f"core {worker}" if worker else "core",
        argv=[sys.executable, "-m", "headrace", "--config", str(path), "serve", *chosen],
        role="core",
        ready=answers(gateway.core_sockets[worker], "/health/live"),
        ready_timeout=gateway.config.server.startup_timeout * (1 + len(gateway.plugins)),
        stop_timeout=gateway.config.server.shutdown_timeout + 5.0,
    )


def answers(socket: Path, path: str) -> Callable[[], Awaitable[bool]]:
    """A readiness check: whether a GET over a unix socket is answered 200."""

    async def check() -> bool:
        answer = await get(socket, path)
        return answer is not None and answer.status == 200

    return check


async def get(socket: Path, path: str, timeout: float = 10.0) -> Answer | None:
    """GET over a unix socket; None if nobody answers within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    words = head.split(b" ", 2)
    return Answer(int(words[1]), body) if len(words) > 1 and words[1].isdigit() else None


async def until_ready(gateway: Gateway) -> None:
    """Wait until every model has a backend that answers; say now and then which do not."""
    mentioned = time.monotonic()
    while True:
        answer = await get(gateway.core_socket, "/health/ready", gateway.config.health.timeout + 5)
        if answer is not None and answer.status == 200:
            return
        if answer is not None and time.monotonic() - mentioned > MENTION_SECONDS:
            mentioned = time.monotonic()
            say(f"waiting for backends: {_reasons(answer.body)}")
        await asyncio.sleep(READY_POLL_SECONDS)


def _reasons(body: bytes) -> str:
    report = msgspec.json.decode(body)
    down = {name: each["reason"] for name, each in report.get("backends", {}).items() if each["status"] != "ok"}
    return "; ".join(f"{name}: {reason}" for name, reason in down.items()) or "no model is configured"


def announce(gateway: Gateway, seconds: float, *, as_json: bool) -> None:
    """Tell a person on stderr how to use it, and a script on stdout in one line."""
    fields = {
        "url": f"http://{gateway.config.server.listen}/v1",
        "key": "",
        "model": next(iter(gateway.models.names()), ""),
        "needs_key": "" if gateway.config.server.anonymous else "yes",
        **gateway.hooks.announce(gateway),
    }
    say(f"ready after {seconds:.1f} s")
    for oddity in gateway.oddities():
        say(f"warning: {oddity}")
    for line in _instructions(fields):
        click.echo(line, err=True)
    ready = {name: fields[name] for name in ("url", "key", "model")}
    click.echo(
        msgspec.json.encode(ready).decode() if as_json else "READY " + " ".join(f"{k}={v}" for k, v in ready.items())
    )
    sys.stdout.flush()


def _instructions(fields: dict[str, str]) -> list[str]:
    body = msgspec.json.encode(
        {"model": fields["model"], "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}
    ).decode()
    command = ["curl", "-N", *(["--cacert", fields["cacert"]] if fields.get("cacert") else [])]
    command += [f"{fields['url']}/chat/completions", "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {fields['key'] or 'KEY'}"] if fields["needs_key"] else []
    site, page = fields["url"].removesuffix("/v1"), fields.get("playground")
    return [
        "",
        f"  URL         {fields['url']}",
        *([f"  key         {fields['key'] or 'make one: headrace keys create NAME'}"] if fields["needs_key"] else []),
        f"  model       {fields['model']}",
        *([f"  playground  {site}{page}"] if page else []),
        "",
        f"  {shlex.join([*command, '-d', body])}",
        "",
    ]


def say(line: str) -> None:
    """One line of progress, on stderr."""
    click.echo(f"headrace: {line}", err=True)


__all__: list[Any] = ["up"]
