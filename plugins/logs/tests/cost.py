"""What the line of a request costs: `python plugins/logs/tests/cost.py`. Not a test: figures depend on the machine."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Exchange, Outcome, Principal, Usage
from headrace_logs import LogsConfig
from headrace_logs.journal import Journal

LINES = 20_000
ROUNDS = 5

OPTIONS: dict[str, dict[str, Any]] = {
    "json": {},
    "json, ten fields": {
        "fields": ["request_id", "user.id", "gen_ai.request.model", "target", "http.response.status_code", "completed"]
    },
    "json, sample = 0.1": {"sample": 0.1},
    "console": {"format": "console"},
}


def an_exchange(identifier: str) -> Exchange:
    endpoint = OPENAI_ENDPOINTS["/v1/chat/completions"]
    scope: dict[str, Any] = {"headers": [], "method": "POST", "path": endpoint.path, "client": ("10.0.0.1", 5)}
    body = b'{"model":"chat","messages":[{"role":"user","content":"Say hello."}]}'
    made = Exchange(id=identifier, endpoint=endpoint, scope=scope, body=body)
    made.peek = endpoint.read(made.body)
    made.principal = Principal(id="k3m9x2p7q4w8", name="alice", team="maths")
    return made


OUTCOME = Outcome(
    status=200,
    completed=True,
    target="gpu1",
    delivery="offload",
    delivery_reason="nothing needs the reply's bytes",
    usage=Usage(10, 20, 3),
    bytes_sent=12345,
    ttft_seconds=0.1234567,
    duration_seconds=1.2345678,
    attempts=1,
)


async def microseconds(options: dict[str, Any], folder: Path) -> float:
    """CPU time of one line in the thread that answers requests: the best of some rounds."""
    chance = random.Random(7)
    exchanges = [an_exchange(f"{chance.getrandbits(128):032x}") for _ in range(LINES)]
    best = float("inf")
    for _ in range(ROUNDS):
        config = LogsConfig(path=str(folder / "x.log"), buffer_bytes=1 << 30, **options)
        async with Journal(config, folder) as journal:
            started = time.thread_time()
            for exchange in exchanges:
                journal.request(exchange, OUTCOME)
            best = min(best, time.thread_time() - started)
    return best / LINES * 1e6


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, options in OPTIONS.items():
            if all(each in LogsConfig.__struct_fields__ for each in options):
                sys.stdout.write(f"{name:20} {await microseconds(options, Path(folder)):6.2f} µs a line\n")


if __name__ == "__main__":
    asyncio.run(main())
