"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec
import pytest

from headrace import errors, hookspecs

LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HOOKS = [hook for hook in vars(hookspecs).values() if hasattr(hook, "headrace_kind")]


def test_the_generated_pages_are_up_to_date_whatever_the_environment(
    root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, str(root / "docs/generate.py"), "--check"]
    odd = {"PYTHONHASHSEED": "7", "COLUMNS": "40", "HEADRACE_PORT": "1", "HEADRACE_KEY": "hr-x", "LANG": "C"}
    done = subprocess.run(command, cwd=tmp_path, env={**environment, **odd}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_fails_and_names_the_page_that_differs(
    root: Path, tmp_path: Path, generate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "docs/reference", tmp_path / "reference")
    page = tmp_path / "reference/cli.md"
    page.write_text(page.read_text("utf-8") + "more", "utf-8")
    assert generate.main(["--check"], tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == ["docs/reference/cli.md is out of date: run python docs/generate.py"]


def test_generating_writes_every_page_that_is_missing(tmp_path: Path, generate: ModuleType) -> None:
    generate.main([], tmp_path)
    assert generate.outdated(tmp_path) == []


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: str(hook.__name__))
def test_every_hook_is_documented_with_its_exact_signature(hook: Any, root: Path) -> None:
    signature = inspect.signature(hook)
    arguments = ", ".join(f"{each.name}: {each.annotation}" for each in signature.parameters.values())
    colour = "async def" if inspect.iscoroutinefunction(hook) else "def"
    written = f"\n{colour} {hook.__name__}({arguments}) -> {signature.return_annotation}: ...\n"
    assert written in (root / "docs/reference/hooks.md").read_text("utf-8")


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: str(hook.__name__))
def test_every_hook_says_what_it_is_for_and_how_it_fails(hook: Any, root: Path) -> None:
    page = (root / "docs/reference/hooks.md").read_text("utf-8")
    section = page.partition(f"\n### {hook.__name__}\n")[2].partition("\n### ")[0]
    first_line = (inspect.getdoc(hook) or "").splitlines()[0].partition(" Fails unexpectedly")[0]
    assert first_line
    assert first_line in section
    assert f", {hook.headrace_kind.name}, " in section
    assert "Fails unexpectedly: " in section


def test_every_configuration_key_has_a_docstring(generator: ModuleType) -> None:
    undocumented = [
        f"{struct.__module__}.{struct.__name__}.{field.name}"
        for struct in generator.configuration.structs()
        for field in msgspec.structs.fields(struct)
        if not _doc_of(generator, struct, field.name)
    ]
    assert undocumented == []


def test_every_configuration_key_stands_in_the_reference(generator: ModuleType, root: Path) -> None:
    page = (root / "docs/reference/configuration.md").read_text("utf-8")
    missing = [
        f"{struct.__name__}.{field.name}"
        for struct in generator.configuration.structs()
        for field in msgspec.structs.fields(struct)
        if f"| `{field.encode_name}` |" not in page
    ]
    assert missing == []


def test_the_configuration_of_every_plugin_here_is_found(generator: ModuleType, root: Path) -> None:
    found = {struct.__module__.partition(".")[0] for struct in generator.configuration.structs()}
    assert found == {"headrace", *(f"headrace_{path.parent.name}" for path in root.glob("plugins/*/pyproject.toml"))}


def test_every_command_stands_in_the_reference(generator: ModuleType, root: Path) -> None:
    page = (root / "docs/reference/cli.md").read_text("utf-8")
    group, _ = generator.cli.commands()
    assert [name for name in _names(group, "headrace") if f"\n## {name}\n" not in page] == []


def test_every_error_class_stands_in_the_reference(root: Path) -> None:
    page = (root / "docs/reference/errors.md").read_text("utf-8")
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, Exception)]
    named = [each.__name__ for each in classes if each.__module__ == errors.__name__]
    assert [
        name for name in named if f"{name} " not in page and f"`{name}`" not in page and name + "\n" not in page
    ] == []


def test_relative_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = FENCED.sub("", page.read_text("utf-8"))
    targets = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert [link for link in targets if not _exists(page, link)] == []


def _doc_of(generator: ModuleType, struct: type[Any], name: str) -> str:
    source = generator.source
    for cls in struct.__mro__:
        if name in getattr(cls, "__annotations__", {}):
            return next(str(each.doc) for each in source.attributes(source.class_node(cls).body) if each.name == name)
    return ""


def _names(group: click.Group, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        yield f"{path} {name}"
        if isinstance(command, click.Group):
            yield from _names(command, f"{path} {name}")


def _exists(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(FENCED.sub("", target.read_text("utf-8")))


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return {f"{slug}-{slugs[:at].count(slug)}" if slug in slugs[:at] else slug for at, slug in enumerate(slugs)}
