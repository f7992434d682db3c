"""Fresh environments, made with nothing but `python -m venv` and `pip install`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


class Environment:
    """A virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.headrace = folder / "bin" / "headrace"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def megabytes(self) -> float:
        """What `site-packages` takes, byte code included, pip not counted."""
        entries = (entry for entry in self.site_packages.iterdir() if not entry.name.startswith("pip"))
        files = (file for entry in entries for file in (entry, *entry.rglob("*")) if file.is_file())
        return sum(file.stat().st_size for file in files) / 1_000_000

    def pip(self, *arguments: str) -> None:
        done = subprocess.run(
            [self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            env=clean(),
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def run(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `headrace` and wait for its end."""
        return subprocess.run(
            [self.headrace, *arguments], cwd=cwd, env=clean() | environment, capture_output=True, text=True, timeout=60
        )


def clean() -> dict[str, str]:
    """The environment without what belongs to the one that runs the tests."""
    left_out = ("PYTHON", "VIRTUAL_ENV", "HEADRACE_", "PARROT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


@pytest.fixture
def new_environment(tmp_path: Path) -> Environment:
    """An empty one."""
    return Environment(tmp_path / "venv")


@pytest.fixture(scope="session")
def bare_and_its_size(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, float]:
    """An environment with the core alone, and the megabytes that installing it took."""
    environment = Environment(tmp_path_factory.mktemp("bare") / "venv")
    empty = environment.megabytes()
    environment.pip("install", str(kit.repository / "core"))
    return environment, environment.megabytes() - empty


@pytest.fixture(scope="session")
def bare(bare_and_its_size: tuple[Environment, float]) -> Environment:
    return bare_and_its_size[0]


@pytest.fixture(scope="session")
def bare_megabytes(bare_and_its_size: tuple[Environment, float]) -> float:
    return bare_and_its_size[1]


@pytest.fixture(scope="session")
def wheel(bare: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third party's plugin as a wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    bare.pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(HERE / "external_plugin"))
    return next(folder.glob("headrace_parrot-*.whl"))


@pytest.fixture(scope="session")
def third_party(bare: Environment, wheel: Path) -> Environment:
    """The same environment with the third party's wheel beside the core."""
    bare.pip("install", str(wheel))
    return bare


@pytest.fixture
def folder(kit: Any) -> Iterator[Path]:
    with kit.short_folder() as folder:
        yield folder
