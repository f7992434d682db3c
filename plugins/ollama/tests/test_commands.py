"""`headrace ollama …`, as processes, against a stand-in in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
CONFIG = """\
[server]
state_dir = "{folder}/s"
[backends.gpu]
provider = "ollama"
base_url = "{url}"
model = "llama3.2"
[models.m]
targets = ["gpu"]
[plugins.ollama]
"""
SECOND = """\
[backends.two]
provider = "ollama"
base_url = "{url}"
options = {{ api = "openai" }}
[models.other]
targets = ["two"]
"""


@pytest.fixture
def fake(kit: Any) -> Iterator[Any]:
    """A stand-in that runs beside the test."""
    found: list[Any] = []
    ready, over = threading.Event(), threading.Event()

    async def run() -> None:
        async with kit.FakeOllama() as fake:
            found.append(fake)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    over.set()
    thread.join(10)


@pytest.fixture
def run(fake: Any, tmp_path: Path) -> Run:
    """`headrace ollama …` with a configuration; `second`: with another backend."""

    def run(*arguments: str, second: bool = False, typed: str = "") -> subprocess.CompletedProcess[str]:
        config = tmp_path / "headrace.toml"
        text = CONFIG + (SECOND if second else "")
        config.write_text(text.format(folder=tmp_path, url=fake.url))
        return subprocess.run(
            [sys.executable, "-m", "headrace", "--config", str(config), "ollama", *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_the_models_of_a_server_are_listed(run: Run) -> None:
    done = run("list")
    assert done.returncode == 0, done.stderr
    assert ["gpu", "llama3.2:latest", "2.0", "GB", "3.2B", "Q4_K_M"] in [
        line.split()[:6] for line in done.stdout.splitlines()
    ]
    (first, *_) = json.loads(run("list", "--json").stdout)
    assert (first["name"], first["size"]) == ("llama3.2:latest", 2_019_393_189)


def test_a_model_is_pulled_and_how_far_it_has_come_is_told(run: Run, fake: Any) -> None:
    done = run("pull")
    assert (done.returncode, done.stdout) == (0, "gpu: llama3.2 pulled\n"), done.stderr
    assert "gpu: pulling 6a0746a1ec1a: 50 % of 4.0 GB" in done.stderr.splitlines()
    assert fake.asked == {"model": "llama3.2", "stream": True}


def test_what_was_pulled_is_told_as_json(run: Run) -> None:
    assert json.loads(run("pull", "qwen3", "--json").stdout) == [
        {"backend": "gpu", "model": "qwen3", "status": "pulled"}
    ]


PULLS = {
    "refused": (
        [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}],
        "file does not",
    ),
    "cut": ([{"status": "pulling manifest"}], "stopped before llama3.2 was complete"),
}


@pytest.mark.parametrize(("said", "words"), PULLS.values(), ids=PULLS)
def test_a_model_that_was_not_pulled_is_a_failure(run: Run, fake: Any, said: Any, words: str) -> None:
    fake.pulls = said
    done = run("pull")
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_what_a_model_can_do_is_shown(run: Run) -> None:
    done = run("show")
    assert "capabilities: completion, tools" in done.stdout
    assert "context_length: 131072" in done.stdout
    assert "settings: num_ctx 8192" in done.stdout


def test_a_model_that_is_not_there_is_told_in_ollamas_words(run: Run) -> None:
    done = run("show", "nonesuch")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "gpu: model 'nonesuch' not found\n")


def test_a_model_is_removed_when_that_is_meant(run: Run, fake: Any) -> None:
    assert run("rm", "llava", typed="n\n").returncode == 1
    assert "llava:latest" in fake.models
    assert run("rm", "llava", "--yes").stdout == "gpu: llava removed\n"
    assert "llava:latest" not in fake.models


def test_models_in_memory_are_listed(run: Run) -> None:
    assert ["gpu", "llama3.2:latest", "4.0", "GB", "75", "%", "4096"] in [
        line.split()[:7] for line in run("ps").stdout.splitlines()
    ]


def test_a_model_is_taken_out_of_memory(run: Run, fake: Any) -> None:
    assert run("unload").stdout == "gpu: llama3.2 unloaded\n"
    assert fake.asked == {"model": "llama3.2", "keep_alive": 0, "stream": False}


def test_with_several_servers_one_is_named(run: Run, fake: Any) -> None:
    done = run("pull", "qwen3", second=True)
    assert (done.returncode, "--backend" in done.stderr) == (2, True)
    assert run("pull", "qwen3", "--backend", "two", second=True).stdout == "two: qwen3 pulled\n"


def test_every_server_is_listed(run: Run) -> None:
    assert {row["backend"] for row in json.loads(run("list", "--json", second=True).stdout)} == {"gpu", "two"}


def test_a_server_that_there_is_not_is_refused(run: Run) -> None:
    done = run("list", "--backend", "nobody")
    assert (done.returncode, done.stderr) == (1, "Error: no Ollama backend is called 'nobody' (there are: gpu)\n")


def test_a_model_that_nobody_names_is_asked_for(run: Run) -> None:
    done = run("pull", "--backend", "two", second=True)
    assert (done.returncode, "name the MODEL" in done.stderr) == (2, True)
