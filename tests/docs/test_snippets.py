"""What the pages show works: configurations are accepted, Python compiles or runs, commands exist."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec
import pytest

from headrace.gateway import Gateway
from headrace.reports import check_report
from headrace.settings import parse
from headrace.testing import FakeBackend, serve

SMALL = """
[models.chat]
targets = [{ provider = "openai", base_url = "http://127.0.0.1:8000" }]
[plugins.keys]
[plugins.openai]
"""
"""The small whole configuration over which `toml part` blocks are laid."""

OF_MAKE_RUN = "https://localhost:8443/v1"
"""The address in programs that are shown; the tests run them against a gateway of their own."""

ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "sk-ant-of-a-test",
    "OPENAI_API_KEY": "sk-of-a-test",
    "ALLOWED_ORIGINS": "https://app.example.com",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables that examples refer to."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_a_configuration_that_is_shown_is_accepted(toml: Any, tmp_path: Path) -> None:
    is_part = toml.words == "part" or toml.page.startswith("plugins/")
    if toml.words and not is_part:
        tomllib.loads(toml.text)
        return
    if is_part:
        document = _merged(tomllib.loads(SMALL), tomllib.loads(toml.text))
        Gateway(parse(document, source=toml.page)).assemble()
    else:
        file = tmp_path / "gateway.toml"
        file.write_text(toml.text, "utf-8")
        assert check_report(file) == ([], [])


def test_the_configurations_to_start_from_are_accepted(root: Path) -> None:
    files = sorted((root / "conf").glob("*.toml"))
    assert files
    assert [check_report(file) for file in files] == [([], [])] * len(files)


def test_json_that_is_shown_is_json(json: Any) -> None:
    msgspec.json.decode(json.text)


def test_python_that_is_shown_compiles(python: Any) -> None:
    compile(python.text, python.page, "exec", dont_inherit=True)


async def test_python_marked_run_works_against_a_gateway(
    snippets: list[Any], tmp_path: Path, environment: dict[str, str]
) -> None:
    programs = [each for each in snippets if each.language == "python" and each.words == "run"]
    assert programs
    models = {"smollm2-135m": {"targets": ["fake"]}}
    async with FakeBackend() as backend, serve(backend.config(models=models)) as running:
        client = {**environment, "HEADRACE_KEY": "hr-any"}
        for program in programs:
            assert OF_MAKE_RUN in program.text
            here = program.text.replace(OF_MAKE_RUN, f"{running.url}/v1")
            assert await _run(here, client) == "t0 t1 t2 \n", program.page


async def _run(program: str, environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


def test_a_headrace_command_that_is_shown_exists(call: Any, generator: ModuleType) -> None:
    words = [word for word in shlex.split(call.text, comments=True) if word not in ("…", "&")]
    group, _ = generator.cli.commands()
    command, rest = _resolved(group, _without_config(words))
    if call.exact:
        _parse(command, rest)
    else:
        _check_options(command, rest)


def test_make_targets_that_are_shown_exist(page: Path, root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", page.read_text("utf-8"), re.MULTILINE))
    assert shown <= targets


def _resolved(group: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """Follow the names of groups and commands as far as they go."""
    command, rest = group, words
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0].isupper():  # a placeholder, as in `headrace COMMAND --help`
            break
        assert rest[0] in command.commands, f"there is no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _without_config(words: list[str]) -> list[str]:
    for option in ("--config", "-c"):
        if option in words:
            at = words.index(option)
            return [*words[:at], *words[at + 2 :]]
    return words


def _parse(command: click.Command, words: list[str]) -> None:
    try:
        command.make_context("headrace", list(words))
    except click.exceptions.Exit as finished:  # --help
        assert finished.exit_code == 0


def _check_options(command: click.Command, words: list[str]) -> None:
    """The options that a line mentions, be it with brackets and placeholders, are the command's."""
    known = {name for each in command.params for name in each.opts} | {"--help"}
    mentioned = {word.strip("[],").partition("=")[0] for word in words if word.lstrip("[").startswith("-")}
    assert mentioned <= known


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
