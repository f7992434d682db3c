"""The third tutorial, step by step as it is written: a skeleton, a hook, its test, a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = "docs/tutorial/3-first-plugin.md"
NAME, PACKAGE = "token-cap", "headrace_token_cap"


class Workshop:
    """A folder with the plugin in it, and an environment in which it counts as installed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.plugin = folder / f"headrace-{NAME}"
        path = f"{self._metadata()}:{self.plugin / 'src'}"
        self.environment = {**environment, "PYTHONPATH": path}

    def _metadata(self) -> Path:
        """What an editable installation leaves in site-packages: the distribution's name and its entry points."""
        site = self.folder / "site"
        info = site / f"{PACKAGE}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: headrace-{NAME}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[headrace.plugins]\n{NAME} = {PACKAGE}:Plugin\n")
        return site

    def run(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, cwd=cwd or self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )

    def tests(self) -> subprocess.CompletedProcess[str]:
        """Run the plugin's tests as its author would."""
        return self.run("pytest", "-q", "-p", "no:cacheprovider", cwd=self.plugin)


@pytest.fixture
def skeleton(tmp_path: Path, environment: dict[str, str]) -> Workshop:
    """After the first step: `headrace new-plugin token-cap`, installed."""
    workshop = Workshop(tmp_path, environment)
    done = workshop.run("headrace", "new-plugin", NAME)
    assert done.returncode == 0, done.stderr
    return workshop


@pytest.fixture
def finished(skeleton: Workshop, snippets: list[Any]) -> Workshop:
    """After the last step: every `file=PATH` block of the page written."""
    files = [each for each in snippets if each.page == PAGE and each.words.startswith("file=")]
    for each in files:
        (skeleton.plugin / each.words.removeprefix("file=")).write_text(each.text, "utf-8")
    (skeleton.folder / "gateway.toml").write_text(_configuration(snippets), "utf-8")
    return skeleton


def _configuration(snippets: list[Any]) -> str:
    return next(str(each.text) for each in snippets if each.page == PAGE and each.words == NAME)


def test_the_skeletons_own_test_passes(skeleton: Workshop) -> None:
    done = skeleton.tests()
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_skeleton_has_the_files_and_the_entry_point_that_the_page_shows(
    skeleton: Workshop, snippets: list[Any]
) -> None:
    listed = next(each.text for each in snippets if each.page == PAGE and "find headrace-token-cap" in each.text)
    shown = {line for line in listed.splitlines() if line.startswith(f"headrace-{NAME}/")}
    entry_point = next(each.text for each in snippets if each.page == PAGE and each.words == "fragment")
    files = {str(path.relative_to(skeleton.folder)) for path in skeleton.plugin.rglob("*") if path.is_file()}
    assert files == shown
    assert entry_point in (skeleton.plugin / "pyproject.toml").read_text("utf-8")


def test_the_tests_of_the_finished_plugin_pass(finished: Workshop) -> None:
    done = finished.tests()
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_the_configuration_of_the_page_is_accepted_and_uses_the_hook(finished: Workshop) -> None:
    checked = finished.run("headrace", "config", "check", "gateway.toml")
    hooks = finished.run("headrace", "--config", "gateway.toml", "hooks")
    assert checked.stdout == "gateway.toml: ok\n", checked.stderr
    assert ["transform_request", "each", "yes", NAME] in [line.split() for line in hooks.stdout.splitlines()]


@pytest.mark.parametrize(
    ("written", "mistake", "said"),
    [
        ("limit = 256", "limt = 256", "[plugins.token-cap] limt: is not a known key; did you mean 'limit'?"),
        ("limit = 256", 'limit = "many"', "[plugins.token-cap] limit: Expected `int`, got `str`"),
    ],
)
def test_mistakes_in_the_configuration_are_told_as_the_page_says(
    finished: Workshop, root: Path, written: str, mistake: str, said: str
) -> None:
    file = finished.folder / "gateway.toml"
    file.write_text(file.read_text("utf-8").replace(written, mistake), "utf-8")
    done = finished.run("headrace", "config", "check", "gateway.toml")
    assert said in done.stderr
    assert said in (root / PAGE).read_text("utf-8")


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("async def transfrom_request", "implements 'transfrom_request', which is not a hook: did you mean"),
        ("def transform_request", "hook 'transform_request': must be async def"),
    ],
)
def test_mistakes_in_the_plugin_are_told_as_the_page_says(
    finished: Workshop, root: Path, mistake: str, said: str
) -> None:
    file = finished.plugin / "src" / PACKAGE / "__init__.py"
    file.write_text(file.read_text("utf-8").replace("async def transform_request", mistake), "utf-8")
    done = finished.run("headrace", "config", "check", "gateway.toml")
    assert said in done.stderr
    assert said in (root / PAGE).read_text("utf-8")
