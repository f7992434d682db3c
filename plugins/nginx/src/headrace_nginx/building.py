"""Our own nginx module: made from its source for the nginx that runs here.

nginx loads only modules that were made with the sources of its own version, so there is none to download.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from headrace.errors import HeadraceError

from .binary import Nginx, built_with, loads

NAME = "ngx_http_headrace_module"
SOURCES = (Path("/usr/share/nginx/src"),)
"""Where Debian's nginx-dev puts nginx's sources."""
BUILD_SECONDS = 300
TOOLS = ("cc", "make")
_VERSION = re.compile(r'#define NGINX_VERSION\s+"(\d+)\.(\d+)\.(\d+)"')
_NEEDS_MORE = re.compile(r"--add-(dynamic-)?module=|--with-\w+=dynamic|--with-ld-opt=|--with-(pcre|zlib|openssl)=")
"""Options of nginx that need what need not be here, and say nothing about how modules are made."""


class CannotBuild(HeadraceError):
    """What is needed to make the module is not installed."""


def _source() -> Traversable:
    return resources.files(__package__) / "module"


def file_name() -> str:
    """Of the module made from this source: one made from another does not know the same configuration."""
    files = sorted((each for each in _source().iterdir() if each.is_file()), key=lambda each: each.name)
    text = b"".join(each.read_bytes() for each in files)
    return f"{NAME}-{hashlib.sha256(text).hexdigest()[:12]}.so"


def find_module(nginx: Nginx, folder: Path) -> str | None:
    """The module in `folder`, if this nginx loads it."""
    path = folder / file_name()
    return str(path) if path.is_file() and loads(nginx.path, path) else None


def build(nginx: Nginx, folder: Path, source: Path | None = None) -> Path:
    """Make the module for this nginx and put it into `folder`.

    Args:
        source: nginx's sources, if they are not where Debian puts them.

    Raises:
        CannotBuild: sources or tools are missing; says what to do.
        HeadraceError: it cannot be made, or this nginx does not load it.
    """
    sources = _nginx_source(nginx, source)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise CannotBuild(f"{' and '.join(missing)} not found: install a C compiler (Debian: apt install gcc make)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
        made = _compile(nginx, sources, Path(place))
        if not loads(nginx.path, made):
            raise HeadraceError(f"{nginx.path} does not load modules made here: was it built with other sources?")
        return made.replace(folder / file_name())


def _nginx_source(nginx: Nginx, given: Path | None) -> Path:
    wanted = ".".join(map(str, nginx.platform.version))
    for folder in (given,) if given is not None else SOURCES:
        header = folder / "src" / "core" / "nginx.h"
        found = _VERSION.search(header.read_text("utf-8", "replace")) if header.is_file() else None
        if found is not None and ".".join(found.groups()) == wanted:
            return folder
        if found is not None:
            raise HeadraceError(f"{folder} has the sources of nginx {'.'.join(found.groups())}, this one is {wanted}")
    raise CannotBuild(
        f"the sources of nginx {wanted} were not found in {given or SOURCES[0]}: install them (Debian: apt install "
        f"nginx-dev), or unpack https://nginx.org/download/nginx-{wanted}.tar.gz and name the folder with --source"
    )


def _compile(nginx: Nginx, sources: Path, place: Path) -> Path:
    tree, module, objects = place / "nginx", place / "module", place / "objs"
    shutil.copytree(sources, tree)  # configure writes into it
    with resources.as_file(_source()) as own:
        shutil.copytree(own, module)
    options = [each for each in shlex.split(built_with(nginx.path)) if not _NEEDS_MORE.match(each)]
    _run(["./configure", *options, f"--builddir={objects}", f"--add-dynamic-module={module}"], tree)
    _run(["make", "-f", str(objects / "Makefile"), "modules"], tree)
    return objects / f"{NAME}.so"


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HeadraceError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}".strip()[-2000:]
        raise HeadraceError(f"the module could not be made, {command[0]} said:\n{said}")
