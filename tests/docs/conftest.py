"""What the documentation's tests share: the pages, the snippets in them, and the generator."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\S*)[ ]?(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
CALL = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?headrace +(\S.*)")


class Snippet(msgspec.Struct, frozen=True):
    """A fenced block of a page: its language, the words after it, and its text."""

    page: str
    number: int
    language: str
    words: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


class Call(msgspec.Struct, frozen=True):
    """A `headrace …` line of a page, without `headrace`. `exact` ones stand in a block to be typed as they are."""

    page: str
    text: str
    exact: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def _pages() -> list[Path]:
    """Every page: the documentation, and the READMEs of the repository and its packages."""
    patterns = ("docs/**/*.md", "*.md", "core/README.md", "plugins/*/README.md")
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def _snippets() -> Iterator[Snippet]:
    for page in _pages():
        for number, match in enumerate(FENCE.finditer(page.read_text("utf-8")), 1):
            yield Snippet(str(page.relative_to(ROOT)), number, *match.groups())


def _calls() -> Iterator[Call]:
    for page in _pages():
        name, text = str(page.relative_to(ROOT)), page.read_text("utf-8")
        for snippet in FENCE.finditer(text):
            if snippet[1] in ("sh", "console"):
                yield from (Call(name, call, True) for call in _typed(snippet[3], snippet[1]))
        rest = FENCE.sub("", text)
        for quoted in re.findall(r"`(headrace [^`]+)`", rest) + re.findall(r"^ {4}(?:\$ )?(headrace .+)$", rest, re.M):
            yield Call(name, quoted.removeprefix("headrace "), False)


def _typed(text: str, language: str) -> Iterator[str]:
    """The calls of `headrace` in a block; in a `console` block, lines to be typed begin with `$ `."""
    for line in text.replace("\\\n", "").splitlines():
        if language == "console" and not line.startswith("$ "):
            continue
        for part in re.split(r"&&|;|\|", line.removeprefix("$ ")):
            call = CALL.fullmatch(part.strip())
            if call is not None:
                yield call[1]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`page`, `call`, and `toml`, `python`, `json` for every snippet of that language."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", _pages(), ids=lambda path: str(path.relative_to(ROOT)))
    if "call" in metafunc.fixturenames:
        metafunc.parametrize("call", dict.fromkeys(_calls()), ids=str)
    for language in ("toml", "python", "json"):
        if language in metafunc.fixturenames:
            found = [snippet for snippet in _snippets() if snippet.language == language]
            metafunc.parametrize(language, found, ids=str)


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def snippets() -> list[Snippet]:
    """Every snippet of every page."""
    return list(_snippets())


@pytest.fixture
def generator() -> Iterator[ModuleType]:
    """The package `docs/generator`, with its modules as attributes."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("generator")
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture
def generate(generator: ModuleType) -> ModuleType:
    """The module `docs/generate.py`."""
    return importlib.import_module("generate")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment for child processes: ours, without what would lead them elsewhere."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    for name in ("HEADRACE_CONFIG", "SSL_CERT_FILE", "PYTHONPATH"):
        kept.pop(name, None)
    return {**kept, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
