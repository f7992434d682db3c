"""Whether the ledger's totals are the engine's own, after many requests of all kinds and servers that were away."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from . import answers
from .cli import say
from .endurance_checks import Finding
from .ledger_books import INPUT, OUTPUT, Books, compared
from .ledger_load import GONE, PREFIX, REFUSING, Ask, Clients, Seen, mix
from .ledger_servers import Server, engine, number, postgres, redis, scripts
from .targets import Endpoint, Failed, Site, headrace_up
from .upstream import Completion

PACE_MS = 5.0
CLIENTS = 32
CONNECTIONS = 1024
MOST = 50_000
"""Requests: `headrace usage list` tells 100,000 rows."""
SETTLE_SECONDS = 60.0
"""How long the last rows may take."""
COMMAND_SECONDS = 120.0
ROWS = f"SELECT count(*) FROM headrace_usage_requests WHERE attempt = 0 AND request_id LIKE '{PREFIX}%'"
PLUGINS = f"""
[backends.refusing]
provider = "openai"
base_url = "http://127.0.0.1:UPSTREAM/refusing"

[backends.gone]
provider = "openai"
base_url = "http://127.0.0.1:GONE"

[backends.engine]
provider = "openai"
base_url = "http://127.0.0.1:UPSTREAM"

[models."{REFUSING}"]
targets = ["refusing", "engine"]

[models."{GONE}"]
targets = ["gone", "engine"]

[plugins.redis]
url = "REDIS"
deadline = 0.5
probe_seconds = 0.1

[plugins.ratelimit]
limits = [{{ requests_per_minute = 1000000000, tokens_per_minute = 1000000000000 }}]

[plugins.cache]
url = "REDIS"
memory_ttl = 1
deadline = 0.5
probe_seconds = 0.1

[plugins.usage]
database = "DATABASE"
"""
PRICE = '[plugins.usage.prices."{model}"]\ninput = {input}\noutput = {output}\n'


def ledger(delivery: str, with_module: bool, count: int, seed: int) -> list[Finding]:
    """`count` requests; Redis is away for a while after a third of them, the database after two. Raises Failed."""
    if count > MOST:
        raise Failed(f"no more than {MOST} requests: more rows cannot be listed")
    with (
        tempfile.TemporaryDirectory(prefix="hr-bench-", ignore_cleanup_errors=True) as folder,
        engine(PACE_MS) as port,
        redis() as (counting, redis_url),
        postgres() as (database, url),
        _nobody() as gone,
    ):
        site = Site(Path(folder), port)
        words = {"UPSTREAM": port, "GONE": gone, "REDIS": redis_url, "DATABASE": url}
        with headrace_up(site, delivery, with_module=with_module, connections=CONNECTIONS, more=_more(words)) as up:
            load = Load(up, mix(count, seed), counting, database)
            asyncio.run(load.run())
            _settle(port, url, count)
            counted = scripts(redis_url)
        books = Books(
            load.seen,
            msgspec.convert(_asked(port, "record"), list[Completion]),
            _asked(port, "stats"),
            _said(site, "list", "--since", "1d", "--limit", "100000"),
            _said(site, "report", "--by", "model,target,status", "--since", "1d")["total"],
        )
    _tell(load.seen)
    again = Finding("times that limits were counted in Redis after it was back", counted, "", least=count // 20)
    return [*compared(books), *load.findings(), again]


@contextlib.contextmanager
def _nobody() -> Iterator[int]:
    """A port that refuses all connections, and is given to nobody else meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def _more(words: dict[str, Any]) -> str:
    text = PLUGINS
    for name, value in words.items():
        text = text.replace(name, str(value))
    prices = (PRICE.format(model=model, input=INPUT, output=OUTPUT) for model in (answers.MODEL, REFUSING, GONE))
    return text + "\n" + "\n".join(prices)


class Load:
    """The requests, and the servers that are stopped and started meanwhile."""

    def __init__(self, endpoint: Endpoint, asks: Sequence[Ask], *servers: Server) -> None:
        self._clients, self._count, self._servers = Clients(endpoint, asks, self._passed), len(asks), servers
        self._done = 0
        self._moved = asyncio.Event()
        self.seen: list[Seen] = []
        self.away: dict[str, int] = {}
        """Requests that were answered while a server was away, by its name."""

    async def run(self) -> None:
        """Raises Failed."""
        interrupting = asyncio.create_task(self._interrupt())
        try:
            self.seen = await self._clients.run(CLIENTS)
            await interrupting
        finally:
            interrupting.cancel()

    def _passed(self, done: int) -> None:
        self._done = done
        self._moved.set()
        if done % max(1, self._count // 10) == 0:
            say(f"ledger: {done} of {self._count} requests")

    def findings(self) -> Iterator[Finding]:
        for name, count in self.away.items():
            yield Finding(f"requests that ended while {name} was away", count, "", least=1)

    async def _interrupt(self) -> None:
        """Each server in its turn, evenly over the requests, for a twentieth of them."""
        for place, server in enumerate(self._servers, 1):
            await self._until(self._count * place // (len(self._servers) + 1))
            await asyncio.to_thread(server.stop)
            began = self._done
            say(f"ledger: {server.name} is away after {began} requests")
            await self._until(began + max(1, self._count // 20))
            self.away[server.name] = self._done - began
            await asyncio.to_thread(server.start)
            say(f"ledger: {server.name} is back after {self._done}")

    async def _until(self, done: int) -> None:
        while self._done < min(done, self._count):
            self._moved.clear()
            await self._moved.wait()


def _settle(port: int, url: str, count: int) -> None:
    """Wait until nothing is on its way and every request has its row; what has none by then has none."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        rows = number(url, ROWS)
        if rows is not None and rows >= count and not _asked(port, "stats")["streaming"]:
            return
        time.sleep(0.2)
    say(f"ledger: there are {rows} rows of {count} requests after {SETTLE_SECONDS:g} s")


def _asked(port: int, what: str) -> Any:
    """What the engine tells."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", f"/{what}")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _said(site: Site, *words: str) -> Any:
    """What `headrace usage` says. Raises Failed."""
    command = [sys.executable, "-m", "headrace", "--config", str(site.folder / "headrace.toml"), "usage", *words]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, timeout=COMMAND_SECONDS, check=False, cwd=site.folder
    )
    if done.returncode:
        raise Failed(f"headrace usage {words[0]}: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    return json.loads(done.stdout)


def _tell(seen: list[Seen]) -> None:
    """The first answers that were not right."""
    for each in [each for each in seen if each.error][:5]:
        say(f"ledger: {each.ask.id}, {each.ask.kind}: {each.error}")
