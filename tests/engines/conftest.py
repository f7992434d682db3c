"""Real vLLM servers on the CPU, started once for all tests of this folder: `make test-engines`.

They are looked for where `sh tests/engines/setup.sh` puts them, or where HEADRACE_VLLM_PYTHON says: it names the Python
of an environment with vLLM. Without either the tests are left out. There are two servers, `a` and `b`, with one tiny
model that says the same known text whatever it is asked (tiny_model.py); `b` takes twice as long prompts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .asking import Words
from .launching import TWO, Site, make_model, site
from .vllm import Server, servers

REPOSITORY = Path(__file__).resolve().parents[2]
LENGTHS = {"a": 4096, "b": 8192}
COUNTING = """
[plugins.openai]
[plugins.responses]
[plugins.anthropic]
[plugins.ratelimit]
exact_prompts = true
[[plugins.ratelimit.limits]]
tokens_per_day = 10_000_000
"""


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


@pytest.fixture(scope="session")
def tiny(all_folder: Path) -> Path:
    """The model, with an adapter beside it."""
    return make_model(vllm_python(), all_folder)


@pytest.fixture(scope="session")
def all_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-tiny-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def own_engine(launch: Callable[..., Any], kit: Any, tiny: Path) -> Iterator[Site]:
    """A gateway that has started vLLM itself, over two workers. The last test to use it kills it."""
    with kit.short_folder() as folder, kit.fake_backend() as fake:
        backends = f'[backends.spare]\nprovider = "openai"\nbase_url = "{fake.url}"'
        with site(
            launch,
            folder,
            vllm_python(),
            tiny,
            backends=backends,
            models='fallen = { targets = ["own"], fallback = ["spare"] }',
            engine="tensor_parallel_size = 2",
            plugins=COUNTING,
            environment=TWO,
        ) as made:
            yield made
