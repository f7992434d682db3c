"""The programs of docs/clients.md: each prints what the backend says, once for each dialect it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text("utf-8")
PROGRAMS = dict(re.findall(r"^```(?:python|js) (\w+)\n(.*?)^```$", PAGE, re.M | re.S))
ANSWERS = {"langchain": 2, "llama_index": 1, "haystack": 1, "semantic_kernel": 1, "pydantic_ai": 2, "vercel": 3}
HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ANSWERS)
def test_a_program_that_is_shown_asks_the_gateway(name: str, run_shown: Callable[[str, str], str]) -> None:
    assert run_shown(name, PROGRAMS[name]) == "One two three.\n" * ANSWERS[name]


def test_every_program_that_is_shown_is_run() -> None:
    assert PROGRAMS.keys() == ANSWERS.keys()


def test_the_versions_that_are_told_are_those_that_are_installed() -> None:
    pins = {pin for path in HERE.glob("requirements/*.txt") for pin in path.read_text("utf-8").split()}
    of_node = json.loads((HERE / "package.json").read_text("utf-8"))["dependencies"]
    told = re.findall(r"\b([a-z]+(?:-[a-z]+)*) (\d+\.\d+\.\d+)\b", PAGE)
    assert len(told) == len(ANSWERS) + 1  # LangChain is two packages
    assert {f"{name}=={version}" for name, version in told} <= pins | {f"{n}=={v}" for n, v in of_node.items()}
