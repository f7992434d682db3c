"""A gateway with the plugin in a directory of its own, and processes beside it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.gateway import Gateway
from headrace.settings import parse

CREATE = """
import sys
from pathlib import Path
from headrace_keys.store import Store
with Store.open(Path(sys.argv[1])) as store, store.writing():
    print(store.create(sys.argv[2])[1].reveal())
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def make_gateway(tmp_path: Path) -> Callable[..., Gateway]:
    """A gateway over `tmp_path`; the arguments are keys of `[plugins.keys]`."""

    def make(**keys: Any) -> Gateway:
        document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"keys": keys}}
        return Gateway(parse(document)).assemble()

    return make


@pytest.fixture
def create_elsewhere(database: Path) -> Callable[[str], str]:
    """Make a key in another process; returns the whole key."""

    def create(name: str) -> str:
        argv = [sys.executable, "-c", CREATE, str(database), name]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    return create


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds; returns how many seconds that took."""

    async def wait(condition: Callable[[], bool], seconds: float = 20.0) -> float:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, "did not happen in time"
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    return wait
