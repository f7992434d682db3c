"""What `pip install` brings, and how quickly it answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

LIMIT_MEGABYTES = 40
LIMIT_SECONDS = 0.3
PLUGINS = (
    "openai",
    "cache",
    "textgen",
    "localai",
    "lmstudio",
    "mlx",
    "tgi",
    "llamacpp",
    "ollama",
    "batch",
    "responses",
    "anthropic",
    "vllm",
    "usage",
    "metrics",
    "gpu",
    "embedded",
    "nginx",
    "keys",
    "logs",
    "cors",
    "playground",
    "ratelimit",
    "budget",
    "queue",
    "routing",
    "prefix",
    "health",
    "breaker",
)


def test_the_core_and_all_it_needs_are_small(bare_megabytes: float) -> None:
    print(f"pip install ./core: {bare_megabytes:.1f} MB in site-packages")
    assert bare_megabytes < LIMIT_MEGABYTES


@pytest.mark.alone
def test_help_is_quick(bare: Any, folder: Path) -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = bare.run("--help", cwd=folder)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
    print(f"headrace --help: {min(seconds) * 1000:.0f} ms at best of {[round(each * 1000) for each in seconds]}")
    assert min(seconds) < LIMIT_SECONDS


def test_help_names_the_commands(bare: Any, folder: Path) -> None:
    said = bare.run("--help", cwd=folder).stdout
    assert all(command in said for command in ("up", "serve", "config", "plugins", "hooks", "explain", "version"))


def test_it_says_its_version(bare: Any, folder: Path) -> None:
    done = bare.run("version", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("headrace 0.1.")


def test_the_core_alone_has_no_plugins_and_says_so(bare: Any, folder: Path) -> None:
    (folder / "headrace.toml").write_text("[plugins.keys]\n")
    done = bare.run("config", "check", "headrace.toml", cwd=folder)
    assert done.returncode == 1
    assert "pip install headrace-keys" in done.stderr


def test_the_extra_standard_resolves_from_local_paths(new_environment: Any, kit: Any, folder: Path) -> None:
    paths = [str(kit.repository / "plugins" / name) for name in PLUGINS]
    new_environment.pip("install", f"{kit.repository / 'core'}[standard]", *paths)
    done = new_environment.run("config", "check", str(kit.repository / "conf" / "headrace.toml"), cwd=folder)
    assert done.returncode == 0, done.stderr
