"""Real vLLM servers on the CPU, started once for all tests of this folder: `make test-engines`.

They are looked for where `sh tests/engines/setup.sh` puts them, or where HEADRACE_VLLM_PYTHON says: it names the Python
of an environment with vLLM. Without either the tests are left out. There are two servers, `a` and `b`, with one tiny
model that says the same known text whatever it is asked (tiny_model.py); `b` takes twice as long prompts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .asking import Words
from .vllm import Server, servers

REPOSITORY = Path(__file__).resolve().parents[2]
LENGTHS = {"a": 4096, "b": 8192}


NONE = (
    "tests/engines: not run, there is no vLLM: `sh tests/engines/setup.sh` installs it (3.4 GB), "
    "HEADRACE_VLLM_PYTHON names it"
)


def vllm_python() -> Path:
    """The Python that runs vLLM, if it is there."""
    named = os.environ.get("HEADRACE_VLLM_PYTHON")
    return Path(named) if named else REPOSITORY / ".headrace" / "vllm" / "bin" / "python"


def pytest_ignore_collect() -> bool | None:
    return None if vllm_python().exists() else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not vllm_python().exists():
        terminalreporter.write_line(NONE)


@pytest.fixture(scope="session")
def all_servers() -> Iterator[dict[str, Server]]:
    temporary = tempfile.TemporaryDirectory(prefix="hr-vllm-", ignore_cleanup_errors=True)
    with temporary as folder, servers(vllm_python(), Path(folder), LENGTHS) as found:
        yield found


@pytest.fixture
def a(all_servers: dict[str, Server]) -> Server:
    """One of the servers, ready and with nothing to do."""
    return all_servers["a"].ready()


@pytest.fixture
def b(all_servers: dict[str, Server]) -> Server:
    """The other."""
    return all_servers["b"].ready()


@pytest.fixture
def words(request: pytest.FixtureRequest) -> Words:
    """Words that no other test says, so that no server has them in its cache."""
    return Words(request.node.nodeid)
