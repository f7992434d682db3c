"""`headrace new-plugin NAME`: a whole plugin package to start from."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from string import Template

from .errors import HeadraceError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "headrace-$name"
version = "0.1.0"
description = "Headrace plugin: greets every answer with a header"
readme = "README.md"
requires-python = ">=3.11"
dependencies = [
    "headrace>=$minor,<$next",
]

[project.optional-dependencies]
test = ["httpx>=0.28", "pytest>=9.0", "pytest-asyncio>=1.3"]

[project.entry-points."headrace.plugins"]
$name = "$package:Plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
filterwarnings = ["error"]
"""

PACKAGE = '''\
"""A Headrace plugin: adds one header to every answer. Change it into yours."""

from __future__ import annotations

from headrace import hookimpl
from headrace.config import Strict
from headrace.exchange import Exchange
from headrace.gateway import Gateway


class Config(Strict, frozen=True):
    """The keys of `[plugins.$name]`."""

    greeting: str = "hello"
    """The value of the header `x-greeting`."""


class Plugin:
    """One instance lives as long as the gateway."""

    Config = Config

    def __init__(self, config: Config, gateway: Gateway) -> None:
        self._header = (b"x-greeting", config.greeting.encode("latin-1"))

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        """Hooks may be any of `headrace hooks`; this one runs once a request, before a backend is asked."""
        exchange.response_headers.append(self._header)
'''

TEST = """\
import httpx
from headrace.testing import FakeBackend, serve


async def test_every_answer_carries_the_greeting() -> None:
    async with (
        FakeBackend() as backend,
        serve(backend.config(plugins={"$name": {"greeting": "hi"}})) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as client,
    ):
        answer = await client.post(
            "/v1/chat/completions",
            json={"model": "test", "messages": [{"role": "user", "content": "hello"}]},
        )
    assert answer.status_code == 200
    assert answer.headers["x-greeting"] == "hi"
"""

README = """\
# headrace-$name

    pip install -e '.[test]'
    pytest

and in the configuration:

    [plugins.$name]
    greeting = "hello"
"""


def render(name: str, into: Path) -> Path:
    """Write the package `headrace-NAME` into a new folder and return it.

    Raises:
        HeadraceError: the name cannot be a package's, or the folder exists.
    """
    if not NAME.fullmatch(name):
        raise HeadraceError(f"{name!r} cannot be a plugin's name: use lower-case letters, digits and single dashes")
    folder = into / f"headrace-{name}"
    if folder.exists():
        raise HeadraceError(f"{folder} exists already")
    package = f"headrace_{name.replace('-', '_')}"
    major, minor = metadata.version("headrace").split(".")[:2]
    values = {
        "name": name,
        "package": package,
        "minor": f"{major}.{minor}",
        "next": f"{major}.{int(minor) + 1}",
    }
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"src/{package}/__init__.py": PACKAGE,
        f"src/{package}/py.typed": "",
        f"tests/test_{package}.py": TEST,
    }
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(text).substitute(values), "utf-8")
    except OSError as error:
        raise HeadraceError(f"{folder} cannot be written: {error.strerror}") from error
    return folder
