"""What counting in a server costs this process, and the server: `python plugins/redis/tests/cost.py redis://…`.

Prints, for requests one after another and at the same time, CPU time and the time that passes per request, with two
limits and with four; then memory per key. The server's database is emptied.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from headrace.config import Secret
from headrace.ledger import Limit, Refusal
from headrace.ledger.local import LocalLedger
from headrace_redis.config import RedisConfig, address_of
from headrace_redis.ledger import RedisLedger
from headrace_redis.resp import command

MOST = 10**12
TWO = (Limit("cost:requests", "window", MOST, 60.0), Limit("cost:tokens", "window", MOST, 60.0))
FOUR = (*TWO, Limit("cost:month", "sum", MOST, time.time() + 1e6), Limit("cost:open", "open", MOST))
REQUESTS = 6000


class Server:
    """Asks the server about itself."""

    def __init__(self, config: RedisConfig) -> None:
        address = address_of(config)
        self._socket = socket.socket(socket.AF_UNIX if address.path else socket.AF_INET)
        self._socket.connect(address.path or (address.host, address.port))

    def __call__(self, *words: bytes) -> str:
        self._socket.sendall(command(*words))
        return self._socket.recv(65536).decode()

    def info(self, section: bytes, name: str) -> float:
        return float(self(b"INFO", section).split(f"\n{name}:")[1].split()[0])

    @property
    def cpu(self) -> float:
        return self.info(b"cpu", "used_cpu_user") + self.info(b"cpu", "used_cpu_sys")


async def play(ledger: RedisLedger, limits: tuple[Limit, ...], count: int) -> None:
    for _ in range(count):
        hold = await ledger.reserve(limits, [7] * len(limits))
        assert not isinstance(hold, Refusal)
        await asyncio.sleep(0)
        hold.settle([3] * len(limits))


async def measure(ledger: RedisLedger, server: Server, limits: tuple[Limit, ...], together: int) -> None:
    there, here, began = server.cpu, time.process_time(), time.perf_counter()
    await asyncio.gather(*[play(ledger, limits, REQUESTS // together) for _ in range(together)])
    here, passed, there = time.process_time() - here, time.perf_counter() - began, server.cpu - there
    each = 1e6 / REQUESTS
    print(
        f"{len(limits)} limits, {together:3} at a time: {here * each:4.0f} us CPU here, "
        f"{there * each:4.0f} us CPU there, {passed * each:4.0f} us pass"
    )


async def memory(ledger: RedisLedger, server: Server, kind: str) -> None:
    server(b"FLUSHALL", b"SYNC")
    before = server.info(b"memory", "used_memory")
    for number in range(5000):
        name = f"ratelimit:0:tokens_per_minute:key_{number:012}"
        limit = (
            Limit(name, "window", MOST, 86_400.0) if kind == "window" else Limit(name, "sum", MOST, time.time() + 1e6)
        )
        await ledger.reserve((limit,), (1000,))
    print(f"a {kind}: {(server.info(b'memory', 'used_memory') - before) / 5000:.0f} bytes")


async def main(url: str, folder: Path) -> None:
    config = RedisConfig(url=Secret(url), deadline=2.0)
    server = Server(config)
    ledger = RedisLedger(config, lambda: LocalLedger(folder / "fallback"))
    async with ledger.running():
        for limits in (TWO, FOUR):
            for together in (1, 8, 32, 128):
                await measure(ledger, server, limits, together)
        for kind in ("window", "sum"):
            await memory(ledger, server, kind)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(main(sys.argv[1], Path(name)))
