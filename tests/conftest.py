"""The real stack, started once for many tests: `headrace up` as a process, nginx, a real model, real sockets.

`stack` is the running gateway, `route` one of the two ways to it: through nginx over TLS, or straight to the core.
Both must give the same answers, so most tests run once with each.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import free_port
from headrace_embedded.fetch import fetch
from headrace_embedded.weights import SMOLLM2

from .backends import chunked, fake_backend, raw_backend, whole
from .processes import SKIPPED, Launched, need, process_tree, still_there, until
from .stack import Answer, Route, Stack

REPOSITORY = Path(__file__).resolve().parents[1]
OWN_STACK = """
[server]
listen = "127.0.0.1:{core_port}"
state_dir = "{folder}/state"
shutdown_timeout = 5
delivery = "{delivery}"
{server}
[backends]
fake = {{ provider = "openai", base_url = "{backend}", model = "fake-model"{fake} }}
raw = {{ provider = "openai", base_url = "{raw}" }}
{backends}
[models]
fake = {{ targets = ["fake"] }}
raw = {{ targets = ["raw"] }}
{models}
[plugins.logs]
path = "log/requests.log"
{logs}
[plugins.keys]
development_key = true
{keys}
[plugins.openai]
[plugins.nginx]
port = {port}
required = true
workers = {workers}
{plugins}
"""

DELIVERIES = {"inline": "inline", "offload": "offload", "module": "offload"}
"""Ways to deliver an answer, and what is configured for them; `module` is `offload` where nginx looks at replies with
our own module, not with a script. Every test of the stack runs with each of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Straight to the core every answer is inline, whatever the stack: once is enough."""

    def is_repeated(item: pytest.Item) -> bool:
        given = getattr(getattr(item, "callspec", None), "params", {})
        return given.get("route") == "core" and given.get("shared_stack", "inline") != "inline"

    items[:] = [item for item in items if not is_repeated(item)]


@functools.cache
def built_modules() -> Path:
    """Where what was compiled is kept for the other stacks of this session."""
    folder = Path(tempfile.mkdtemp(prefix="hr-modules-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_module(folder: Path, config: Path) -> None:
    """`headrace nginx build`, once: the other stacks get a copy. Skips the test where nginx's sources or a compiler are
    not to be had."""
    there, kept = folder / "state" / "nginx-module", built_modules()
    if any(kept.iterdir()):
        shutil.copytree(kept, there, dirs_exist_ok=True)
        return
    _build(folder, config)
    shutil.copytree(there, kept, dirs_exist_ok=True)


def _build(folder: Path, config: Path) -> None:
    command = [sys.executable, "-m", "headrace", "--config", str(config), "nginx", "build"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0 and "install" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers of this file, for tests to use."""
    helpers = (
        *(need, until, free_port, process_tree, still_there, short_folder, Launched, Answer),
        *(fake_backend, raw_backend, whole, chunked),
    )
    return type("Kit", (), {each.__name__: staticmethod(each) for each in helpers} | {"repository": REPOSITORY})


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The real model, fetched once into the repository's state directory."""
    return fetch(SMOLLM2, REPOSITORY / ".headrace").path


@pytest.fixture(scope="session")
def page_port() -> int:
    """The port of the web page whose origin the stack lets in."""
    return free_port()


@pytest.fixture(scope="session")
def launch() -> Callable[..., Any]:
    """A context with a `headrace` process: `with launch(folder, "-c", file, "up") as launched`."""

    @contextlib.contextmanager
    def launch(
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: Path | str = sys.executable,
    ) -> Iterator[Launched]:
        launched = Launched(folder, arguments, environment or {}, python)
        try:
            yield launched
        finally:
            launched.end()

    return launch


@pytest.fixture(scope="session", params=DELIVERIES)
def shared_stack(
    request: pytest.FixtureRequest, launch: Callable[..., Any], model_file: Path, page_port: int
) -> Iterator[Stack]:
    if "nginx" not in SKIPPED or request.param != "inline":
        need("nginx")
    delivery = DELIVERIES[request.param]
    with short_folder() as folder, fake_backend() as fake, raw_backend() as raw, contextlib.ExitStack() as mortal:
        port = free_port()
        config = folder / "headrace.toml"
        text = (
            (Path(__file__).parent / "stack.toml")
            .read_text()
            .format(
                folder=folder,
                core_port=free_port(),
                gone=mortal.enter_context(raw_backend()).url,
                page_port=page_port,
                backend=fake.url,
                raw=raw.url,
                model=model_file,
                delivery=f'delivery = "{delivery}"',
                nginx="" if "nginx" in SKIPPED else f"[plugins.nginx]\nport = {port}\nrequired = true\nworkers = 2",
            )
        )
        config.write_text(text)
        if request.param == "module":
            build_module(folder, config)
        with launch(folder, "--config", str(config), "up") as launched:
            stack = Stack(launched, folder, port, (fake, raw), delivery)
            mortal.close()  # each model must have a backend that answers before the gateway says it is ready
            if delivery == "offload":
                stack.warm_up()
            yield stack


@pytest.fixture(scope="session")
def own_stack(launch: Callable[..., Any]) -> Callable[..., Any]:
    """A context with a small stack of the test's own; what is given is added to these tables of its configuration."""

    @contextlib.contextmanager
    def run(workers: int = 1, way: str = "offload", **tables: str) -> Iterator[Stack]:
        need("nginx")
        with short_folder() as folder, fake_backend() as fake, raw_backend() as raw:
            fields: dict[str, Any] = dict.fromkeys(
                ("server", "backends", "fake", "models", "logs", "keys", "plugins"), ""
            )
            fields |= {**tables, "workers": workers, "delivery": (delivery := DELIVERIES[way])}
            fields |= {"port": (port := free_port()), "core_port": free_port(), "folder": folder}
            fields |= {"backend": fake.url, "raw": raw.url}
            config = folder / "headrace.toml"
            config.write_text(OWN_STACK.format(**fields))
            if way == "module":
                build_module(folder, config)
            with launch(folder, "--config", str(config), "up") as launched:
                yield Stack(launched, folder, port, (fake, raw), delivery)

    return run


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """The stack, with nothing left of the test before."""
    shared_stack.reset()
    until(shared_stack.engine_is_idle, "the engine's rest")
    return shared_stack


@pytest.fixture(params=["nginx", "core"])
def route(request: pytest.FixtureRequest, stack: Stack) -> Route:
    """Through nginx over TLS, and straight to the core."""
    if request.param == "nginx":
        need("nginx")
    return Route(request.param, stack)


@pytest.fixture
def front(stack: Stack) -> Route:
    """Through nginx over TLS, for clients that can take no other way."""
    need("nginx")
    return Route("nginx", stack)
