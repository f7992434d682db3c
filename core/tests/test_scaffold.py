"""`headrace new-plugin`: what it writes is a whole plugin that builds, installs, passes its tests and works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main

NAME = "open-sesame"


def new_plugin(name: str, into: Path) -> Result:
    result = CliRunner().invoke(main, ["new-plugin", name, "--into", str(into)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end; what it printed is in the failure if it fails."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "PYTEST_", "PIP_"))}
    environ |= {"PYTHONPATH": str(path or ""), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote."""
    into = tmp_path_factory.mktemp("scaffold")
    result = new_plugin(NAME, into)
    assert (result.exit_code, result.stdout) == (0, f"wrote {into / f'headrace-{NAME}'}\n")
    return into / f"headrace-{NAME}"


@pytest.fixture(scope="module")
def installed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel built from it is installed."""
    site = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet")
    options = ("--no-deps", "--no-index")
    run(*pip, "wheel", *options, "--no-build-isolation", "--wheel-dir", site, written, cwd=site)
    (wheel,) = site.glob("*.whl")
    assert wheel.name == "headrace_open_sesame-0.1.0-py3-none-any.whl"
    run(*pip, "install", *options, "--target", site / "installed", wheel, cwd=site)
    return site / "installed"


def test_it_pins_the_minor_version_of_the_core_that_wrote_it(written: Path) -> None:
    major, minor = metadata.version("headrace").split(".")[:2]
    project = tomllib.loads((written / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dependencies"] == [f"headrace>={major}.{minor},<{major}.{int(minor) + 1}"]
    assert project["entry-points"]["headrace.plugins"] == {NAME: "headrace_open_sesame:Plugin"}


def test_every_placeholder_is_filled_in(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"pyproject.toml", "README.md", "__init__.py", "py.typed"}
    assert [path for path in files if re.search(r"\$\w", path.read_text("utf-8"))] == []


def test_it_passes_a_linters_usual_checks(written: Path) -> None:
    options = ("--isolated", "--no-cache", "--line-length=120", "--target-version=py311")
    run("-m", "ruff", "check", *options, "--select=E,F,W,I,B,UP,SIM,RUF,ASYNC", written, cwd=written)
    run("-m", "ruff", "format", *options, "--check", written, cwd=written)


def test_its_own_tests_pass_against_the_installed_wheel(written: Path, installed: Path) -> None:
    done = run("-m", "pytest", "-p", "no:cacheprovider", "-q", "tests", cwd=written, path=installed)
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert "skipped" not in done.stdout


def test_the_wheel_is_found_as_an_installed_plugin(installed: Path, tmp_path: Path) -> None:
    done = run("-m", "headrace", "plugins", cwd=tmp_path, path=installed)
    assert re.search(rf"{NAME} +disabled +headrace-{NAME} +0\.1\.0", done.stdout)


def test_a_gateway_with_the_wheel_shows_what_it_does(installed: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import asyncio, httpx, {NAME.replace("-", "_").join(("headrace_", ""))}
        from headrace.testing import FakeBackend, serve

        async def main():
            tables = {{"{NAME}": {{"greeting": "welcome"}}}}
            body = {{"model": "test", "messages": [{{"role": "user", "content": "hello"}}], "stream": True}}
            async with FakeBackend() as backend, serve(backend.config(plugins=tables)) as running:
                async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client:
                    answer = await client.post("/v1/chat/completions", json=body)
            print(answer.status_code, answer.headers["x-greeting"], answer.text.rstrip().endswith("[DONE]"))

        asyncio.run(main())"""
    assert run("-c", code, cwd=tmp_path, path=installed).stdout == "200 welcome True\n"


@pytest.mark.parametrize(
    "name", ["", "Ant", "1ant", "ant_hill", "ant--hill", "-ant", "ant-", "ant hill", "../ant", "ämse"]
)
def test_a_name_that_no_package_can_have_is_refused(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["new-plugin", "--into", str(tmp_path), "--", name])
    assert result.exit_code == 1
    assert f"{name!r} cannot be a plugin's name: use lower-case letters, digits and single dashes" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "headrace-ant"
    folder.mkdir()
    (folder / "mine").write_text("work of weeks", "utf-8")
    result = new_plugin("ant", tmp_path)
    assert (result.exit_code, f"{folder} exists already" in result.stderr) == (1, True)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_place_where_nothing_can_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = new_plugin("ant", tmp_path / "file" / "below")
    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.stderr
