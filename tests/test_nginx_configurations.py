"""The nginx configurations of this repository: what the renderer says, and what the real nginx accepts."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
WITH_NGINX = sorted(
    file
    for file in (REPOSITORY / "conf").glob("*.toml")
    if "nginx" in tomllib.loads(file.read_text()).get("plugins", {})
)


def headrace(file: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "headrace", "--config", str(file), *arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(kit: Any) -> Iterator[Path]:
    with kit.short_folder() as folder:
        yield folder


@pytest.fixture(params=WITH_NGINX, ids=lambda file: file.name)
def file(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_there_is_one_for_every_configuration_with_nginx_and_no_other() -> None:
    committed = {path.stem for path in (REPOSITORY / "nginx").glob("*.conf")}
    assert committed == {file.stem for file in WITH_NGINX}


def test_the_committed_one_is_what_the_renderer_gives(file: Path, folder: Path) -> None:
    committed = REPOSITORY / "nginx" / f"{file.stem}.conf"
    done = headrace(file, "nginx", "render", "--portable", cwd=folder)
    assert done.returncode == 0, done.stderr
    again = f"headrace --config conf/{file.name} nginx render --portable --output nginx/{committed.name}"
    assert committed.read_text() == done.stdout, f"render it anew: {again}"


def test_the_one_for_this_machine_is_accepted_by_its_nginx(file: Path, folder: Path, kit: Any) -> None:
    kit.need("nginx")
    done = headrace(file, "nginx", "check", cwd=folder, HEADRACE_PORT=str(kit.free_port()))
    assert done.returncode == 0, done.stderr
    assert "accepts the configuration" in done.stdout


def test_a_port_given_by_the_environment_is_rendered(file: Path, folder: Path) -> None:
    done = headrace(file, "nginx", "render", "--portable", cwd=folder, HEADRACE_PORT="9443")
    assert "listen 127.0.0.1:9443 " in done.stdout
