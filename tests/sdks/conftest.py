"""Packages that people ask a gateway with, each in an environment of its own: `make test-sdks`.

They are looked for where `sh tests/sdks/setup.sh` puts them, or in the folder that HEADRACE_SDKS names; without them
these tests are left out. Each package has one script (scripts/), which does everything with it in one process, for
importing them takes longer than all else, and prints what it saw as JSON: dialect → what was done → what came.

There is one small stack with offload, through nginx over TLS: which of the ways an answer is delivered does not show in
what a package makes of it, and tests/clients compares them byte for byte.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..processes import SKIPPED
from .backend import weather_backend

HERE = Path(__file__).parent
OPERATION = "gen_ai.operation.name"
OF_MAKE_RUN = "https://localhost:8443"
"""The address in programs that are shown."""
INSTALLED = Path(os.environ.get("HEADRACE_SDKS") or HERE.parents[1] / ".headrace" / "sdks").resolve()
NONE = (
    "tests/sdks: not run, the packages are not there: `sh tests/sdks/setup.sh` installs them (630 MB), "
    "HEADRACE_SDKS names their folder"
)


def is_installed() -> bool:
    """Whether every package is there, in the version that these tests are for."""
    pins = {path.stem: path for path in HERE.glob("requirements/*.txt")}
    if "node" not in SKIPPED:
        pins["node"] = HERE / "package-lock.json"
    made = {name: INSTALLED / name / ".made-of" for name in pins}
    return all(made[name].is_file() and made[name].read_bytes() == pins[name].read_bytes() for name in pins)


def pytest_ignore_collect() -> bool | None:
    return None if is_installed() else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not is_installed():
        terminalreporter.write_line(NONE)


@pytest.fixture(scope="session")
def gateway(own_stack: Callable[..., Any]) -> Iterator[Any]:
    """A gateway whose model `weather` is a backend that knows chats alone."""
    with weather_backend() as url:
        backend = f'weather = {{ provider = "openai", base_url = "{url}", endpoints = ["chat"] }}'
        plugins = "[plugins.anthropic]\n[plugins.responses]"
        with own_stack(
            backends=backend,
            models='weather = { targets = ["weather"], retry = { rounds = 1 } }',
            keys="failures_per_minute = 1000",  # each package tries a wrong key, all of them from one address
            plugins=plugins,
        ) as stack:
            stack.warm_up()
            yield stack


@pytest.fixture(scope="session")
def run(gateway: Any, kit: Any) -> Callable[..., str]:
    """Run a program with a package, be it a file or a text; returns what it printed."""

    def run(name: str, *program: str) -> str:
        done = subprocess.run(
            [kit.need("node")[0] if name == "vercel" else str(INSTALLED / name / "bin" / "python"), *program],
            cwd=INSTALLED / ("node" if name == "vercel" else name),
            env=environment(gateway),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def seen_by(run: Callable[..., str], gateway: Any) -> Callable[[str], tuple[dict[str, Any], set[str]]]:
    """What the script of a package saw, and by which dialects it asked, as the gateway's log has it; each runs once."""

    @functools.cache
    def seen_by(name: str) -> tuple[dict[str, Any], set[str]]:
        script = HERE / "scripts" / f"ask_{name}.py"
        program = as_node(script.with_suffix(".mjs").read_text("utf-8")) if name == "vercel" else (str(script),)
        before = len(logged_lines(gateway))
        printed = run(name, *program)
        lines = logged_lines(gateway)[before:]
        return json.loads(printed), {str(line[OPERATION]) for line in lines if OPERATION in line}

    return seen_by


@pytest.fixture(scope="session")
def run_shown(run: Callable[..., str], gateway: Any) -> Callable[[str, str], str]:
    """Run a program of a page as it stands, but for the address and the model."""

    def run_shown(name: str, text: str) -> str:
        assert OF_MAKE_RUN in text
        here = text.replace(OF_MAKE_RUN, gateway.origin).replace("smollm2-135m", "weather")
        return run(name, *(as_node(here) if name == "vercel" else ("-c", here)))

    return run_shown


def logged_lines(stack: Any) -> list[dict[str, Any]]:
    """The log up to now: a request of our own, a chat, is its last line."""
    last = uuid.uuid4().hex
    stack.route("nginx").post({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}, last)
    stack.logged(last)
    lines = stack.logs.joinpath("requests.log").read_text().rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in lines]


def as_node(text: str) -> tuple[str, ...]:
    """Arguments for node, which looks for packages beside a script, or where it runs if it is given a text."""
    return "--input-type=module", "--eval", text


def environment(stack: Any) -> dict[str, str]:
    """Where the gateway is, and whom to trust; keys and addresses of the surroundings are kept away."""
    ours = {"GATEWAY": stack.origin, "KEY": stack.key, "HEADRACE_KEY": stack.key, "MODEL": "weather"}
    trust = {"SSL_CERT_FILE": str(stack.ca), "NODE_EXTRA_CA_CERTS": str(stack.ca)}
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    quiet = {"HAYSTACK_TELEMETRY_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(stack.folder)}
    return {**kept, **quiet, **trust, **ours}
