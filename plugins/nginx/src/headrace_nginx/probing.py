"""Questions to the system about an nginx: does its process live, can it have its port, does it answer?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
from pathlib import Path

from headrace.errors import HeadraceError


def listens(config: str) -> list[str]:
    """The addresses of a rendered configuration."""
    return re.findall(r"^\s*listen (\S+?);?(?: |$)", config, re.MULTILINE)


def certificates_changed(config: str, since_ns: int) -> bool:
    """Whether a certificate or key that a rendered configuration names is newer than this."""
    names = re.findall(r'^\s*(?:proxy_)?ssl_(?:trusted_)?certificate(?:_key)? "(.+)";', config, re.MULTILINE)
    return any(_changed_ns(name) >= since_ns for name in names)


def _changed_ns(path: str) -> int:
    """When a file, or a link to it, was last changed; 0 if it cannot be looked at. Copying can keep an old mtime."""
    try:
        return max(Path(path).stat().st_ctime_ns, Path(path).lstat().st_ctime_ns)
    except OSError:
        return 0


def check_port(address: str, port: int) -> None:
    """Find out now what nginx would say after seconds of trying. Raises HeadraceError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise HeadraceError(
                f"nginx cannot listen on {address} port {port} ({error.strerror}): set [plugins.nginx] port"
            ) from error


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def any_certificate() -> ssl.SSLContext:
    """We ask ourselves over loopback whether we are up: the certificate's name is of no interest."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def status(host: str, port: int, tls: ssl.SSLContext | None) -> int | None:
    """The status of `GET /health`, None if the answer is not HTTP."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await writer.drain()
        line = (await reader.readline()).split()
        return int(line[1]) if len(line) > 1 and line[0].startswith(b"HTTP/1") and line[1].isdigit() else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
