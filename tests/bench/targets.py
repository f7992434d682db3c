"""What is measured: each a process tree in front of the same upstream, started and ended here."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from headrace.errors import HeadraceError
from headrace.testing import free_port
from headrace_nginx.binary import probe
from headrace_nginx.building import build

from . import answers, cpu

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that `python -m bench.…` is run in."""
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
START_SECONDS = 120.0


class Site(NamedTuple):
    """A target's surroundings: a folder of its own, and the upstream's port."""

    folder: Path
    upstream: int


class Endpoint(NamedTuple):
    """Something that answers on the loopback. `root` is the process whose tree is measured; None: nothing is."""

    port: int
    root: int | None
    headers: tuple[str, ...] = ()
    model: str = answers.MODEL


class Failed(Exception):
    """A target did not start."""


Start = Callable[[Site], AbstractContextManager[Endpoint]]


@contextlib.contextmanager
def upstream(pace_ms: float = 10.0, *, lasting_ms: float | None = None) -> Iterator[int]:
    """The upstream's port. A chunk comes every `pace_ms`, or a stream takes `lasting_ms` however many it has."""
    pace = ("--pace", pace_ms) if lasting_ms is None else ("--lasting", lasting_ms)
    command = [sys.executable, "-m", "bench.upstream", *map(str, pace)]
    with subprocess.Popen(command, cwd=PACKAGES, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            yield int(child.stdout.readline().split()[1])
        finally:
            child.stdin.close()
            child.wait(30)


@contextlib.contextmanager
def direct(site: Site) -> Iterator[Endpoint]:
    """Nothing in between."""
    yield Endpoint(site.upstream, None)


@contextlib.contextmanager
def nginx(site: Site) -> Iterator[Endpoint]:
    """nginx alone, with one worker and nothing that is not needed to pass requests on."""
    program = shutil.which("nginx", path=PATH)
    if program is None:
        raise Failed("it is not installed (Debian: apt install nginx nginx-dev gcc make)")
    port = free_port()
    (site.folder / "nginx.conf").write_text(_nginx_conf(site, port))
    command = [program, "-p", f"{site.folder}/", "-e", "error.log", "-c", "nginx.conf"]
    with running(command, site) as child:
        yield ready(Endpoint(port, child.pid), child, site)


def _nginx_conf(site: Site, port: int) -> str:
    temporary = "\n    ".join(
        f"{kind}_temp_path {site.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
worker_processes 1;
worker_rlimit_nofile 8256;
pid {site.folder}/nginx.pid;
error_log {site.folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_buffer_size 128k;
    {temporary}
    upstream bench {{ server 127.0.0.1:{site.upstream}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@lru_cache(maxsize=1)
def module() -> Path | None:
    """Headrace's own nginx module, made once as `headrace nginx build` makes it; None if that cannot be done here."""
    folder = Path(tempfile.mkdtemp(prefix="hr-bench-module-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return build(probe(Path(shutil.which("nginx", path=PATH) or "nginx")), folder)
    except HeadraceError as error:
        print(f"bench: nginx's script looks at replies, for there is no module: {error}", file=sys.stderr, flush=True)
        return None


@contextlib.contextmanager
def headrace_up(
    site: Site, delivery: str, *, usage: bool = True, with_module: bool = True, connections: int = 4096, more: str = ""
) -> Iterator[Endpoint]:
    """`headrace up`: supervisor, core and nginx, with keys and logs, over plain HTTP.

    Without `usage` no plugin wants to know a reply's tokens. nginx gets so many `connections`. `more` are tables of
    other plugins.
    """
    port = free_port()
    front = f"[plugins.nginx]\nport = {port}\ntls = false\nworkers = 1\nrequired = true\n"
    front += f"worker_connections = {connections}\n{more}"
    if with_module and (made := module()) is not None:
        (site.folder / "state" / "nginx-module").mkdir(parents=True)
        shutil.copy(made, site.folder / "state" / "nginx-module")
    with _headrace(site, f'delivery = "{delivery}"', front, "up", logs="" if usage else "usage = false") as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise Failed(said(site))
        key = msgspec.json.decode(line)["key"]
        yield ready(Endpoint(port, child.pid, (f"Authorization: Bearer {key}",)), child, site)


@contextlib.contextmanager
def headrace_serve(site: Site) -> Iterator[Endpoint]:
    """`headrace serve`: the core alone, with keys and logs."""
    port = free_port()
    key_file = site.folder / "state" / "development.key"
    with _headrace(site, f'listen = "127.0.0.1:{port}"', "", "serve") as child:
        until(key_file.exists, child, site)
        header = f"Authorization: Bearer {key_file.read_text().strip()}"
        yield ready(Endpoint(port, child.pid, (header,)), child, site)


@contextlib.contextmanager
def _headrace(site: Site, server: str, front: str, command: str, logs: str = "") -> Iterator[subprocess.Popen[bytes]]:
    config = site.folder / "headrace.toml"
    config.write_text(f"""\
[server]
state_dir = "{site.folder}/state"
{server}

[models."{answers.MODEL}"]
targets = [{{ provider = "openai", base_url = "http://127.0.0.1:{site.upstream}", max_connections = 8192 }}]

[plugins.logs]
path = "log/requests.log"
{logs}

[plugins.keys]
development_key = true

[plugins.openai]

{front}""")
    arguments = ["--json"] if command == "up" else []
    with running([sys.executable, "-m", "headrace", "--config", str(config), command, *arguments], site) as child:
        yield child


DECIDING = f"""
[plugins.ratelimit]
limits = [{{ requests_per_minute = 1000000000, tokens_per_minute = 1000000000000 }}]

[plugins.budget]
limits = [{{ cost_per_month = 1e6 }}]
prices."{answers.MODEL}" = {{ input = 0.15, output = 0.60 }}

[plugins.queue]

[plugins.breaker]
"""
"""What decides, beside the keys that all have."""
OBSERVING = f"""
[plugins.cache]

[plugins.metrics]

[plugins.otel]
endpoint = "http://127.0.0.1:UPSTREAM"

[plugins.usage]
prices."{answers.MODEL}" = {{ input = 0.15, output = 0.60 }}
"""
"""What remembers and watches, beside the logs that all have. The upstream takes the spans, too."""
EVERYTHING = DECIDING + OBSERVING


def at(site: Site, tables: str) -> str:
    """These tables, for this upstream."""
    return tables.replace("UPSTREAM", str(site.upstream))


OWN: Mapping[str, Start] = {
    "upstream": direct,
    "nginx": nginx,
    "headrace-offload": lambda site: headrace_up(site, "offload"),
    "headrace-offload-no-usage": lambda site: headrace_up(site, "offload", usage=False),
    "headrace-observed": lambda site: headrace_up(site, "offload", more=at(site, OBSERVING)),
    "headrace-all-plugins": lambda site: headrace_up(site, "offload", more=at(site, EVERYTHING)),
    "headrace-offload-script": lambda site: headrace_up(site, "offload", with_module=False),
    "headrace-inline": lambda site: headrace_up(site, "inline"),
    "headrace-serve": headrace_serve,
}
"""Ourselves, and what we are compared with first. Each delivery of `headrace up` is a line."""


@contextlib.contextmanager
def running(
    command: Sequence[str], site: Site, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with everything it started. Its stderr goes to the site's `stderr.txt`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    with (site.folder / "stderr.txt").open("wb") as stderr:
        child = subprocess.Popen(
            command,
            cwd=site.folder,
            env={**kept, "PATH": PATH, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if "--json" in command else stderr,
            stderr=stderr,
        )
    try:
        yield child
    finally:
        cpu.end(child)
        if child.stdout is not None:
            child.stdout.close()


def ready(endpoint: Endpoint, child: subprocess.Popen[bytes], site: Site) -> Endpoint:
    """The endpoint, once it answers a chat completion. Raises Failed."""
    until(lambda: answered(endpoint), child, site)
    return endpoint


def until(condition: Callable[[], bool], child: subprocess.Popen[bytes], site: Site) -> None:
    """Ask until it is true. Raises Failed if the process ends, or takes too long."""
    end = time.monotonic() + START_SECONDS
    while not condition():
        if child.poll() is not None:
            raise Failed(f"it ended with status {child.returncode}: {said(site)}")
        if time.monotonic() > end:
            raise Failed(f"it does not answer after {START_SECONDS:g} s: {said(site)}")
        time.sleep(0.05)


def answered(endpoint: Endpoint) -> bool:
    """Whether it answers a chat completion."""
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    fields = {"model": endpoint.model, "messages": [{"role": "user", "content": "Ready?"}], "max_tokens": 1}
    headers = dict(header.split(": ", 1) for header in endpoint.headers)
    try:
        connection.request(
            "POST", "/v1/chat/completions", msgspec.json.encode(fields), {"Content-Type": "application/json", **headers}
        )
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def said(site: Site) -> str:
    """The last line a target wrote to stderr."""
    lines = (site.folder / "stderr.txt").read_text("utf-8", "replace").split("\n")
    return next((line.strip()[-500:] for line in reversed(lines) if line.strip()), "it said nothing")
