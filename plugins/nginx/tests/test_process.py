"""How nginx starts, reloads and ends, whatever happens to those around it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.errors import HeadraceError, PluginError
from headrace.supervisor import Supervisor
from headrace.testing import free_port
from headrace_nginx.binary import Nginx

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def family(pid: int) -> list[int]:
    """A process and the children of it, by `ps`."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    return [pid, *(child for child, parent in pairs if parent == pid)]


def is_running(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be reaped."""
    table = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(table) and not table.startswith("Z")


def all_gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(map(is_running, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_master_and_workers(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any, number: signal.Signals
) -> None:
    with running(tmp_path, binary=binary) as front:
        pids = family(front.master)
        assert len(pids) > 1
        front.child.send_signal(number)
        assert front.child.wait(20) == 0
        assert all_gone(pids)()


def test_a_graceful_stop_lets_a_stream_finish_but_takes_no_new_connections(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front, front.connect() as stream:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = stream.recv(10)
        front.child.send_signal(signal.SIGQUIT)
        tools.until(lambda: refuses(front), "the end of listening")
        front.core.release.set()
        assert b"data: 2" in seen + tools.read_all(stream)
        assert front.child.wait(20) == 0


def test_a_graceful_stop_has_an_end(binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any) -> None:
    with running(tmp_path, {"shutdown_timeout": 0.5}, binary=binary) as front, front.connect() as stream:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stream.recv(10)
        pids = family(front.master)
        front.child.send_signal(signal.SIGQUIT)
        assert front.child.wait(20) == 0
        assert all_gone(pids)()


def refuses(front: Any) -> bool:
    """Whether nobody listens any more; asked without TLS, whose socket Python leaks when the peer resets it."""
    try:
        with socket.create_connection(("127.0.0.1", front.port), timeout=20):
            return False
    except OSError:
        return True


def test_a_reload_keeps_an_open_stream_and_takes_the_new_configuration(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front, front.connect() as stream:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        seen = stream.recv(10)
        service = front.service
        service.config = changed(service.config, max_body_bytes=10)
        assert service.reload() == front.master
        tools.until(lambda: front.ask(method="POST", body=b"x" * 11).status == 413, "the new limit")
        front.core.release.set()
        assert b"data: 2" in seen + tools.read_all(stream)


def changed(config: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(config, **changes)


def test_a_reload_does_not_move_a_running_nginx_to_another_port(
    binary: str, running: Callable[..., Any], tmp_path: Path
) -> None:
    with running(tmp_path, binary=binary) as front:
        service, before = front.service, front.service.layout.config_file.read_text()
        service.config = changed(service.config, port=1 + front.port % 65535)
        with pytest.raises(HeadraceError, match=rf"listens on 127\.0\.0\.1:{front.port}.*restart"):
            service.reload()
        assert service.layout.config_file.read_text() == before


def test_a_reload_that_nginx_refuses_leaves_the_old_configuration(
    binary: str, running: Callable[..., Any], tmp_path: Path
) -> None:
    with running(tmp_path, binary=binary) as front:
        service, before = front.service, front.service.layout.config_file.read_text()
        service.config = changed(service.config, certificate="/nowhere.pem", certificate_key="/nowhere.key")
        with pytest.raises(HeadraceError, match=r"nginx refuses the configuration(.|\n)*/nowhere\.pem"):
            service.reload()
        assert service.layout.config_file.read_text() == before
        assert front.ask().status == 200


def test_what_changes_nothing_for_nginx_leaves_its_workers_and_their_connections_alone(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front:
        before = set(family(front.master))
        front.service.take_over()
        assert front.ask().status == 200
        assert set(family(front.master)) == before
        os.utime(front.service.layout.tls / "server.pem")
        front.service.take_over()
        tools.until(lambda: before.isdisjoint(set(family(front.master)) - {front.master}), "new workers")
        again = set(family(front.master))
        front.service.take_over()
        assert front.ask().status == 200
        assert set(family(front.master)) == again


def test_a_reload_without_a_running_nginx_says_so(make_service: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="no nginx of this gateway is running"):
        make_service(tmp_path).reload()


def test_workers_do_not_outlive_a_master_that_was_killed(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front:
        pids = family(front.master)
        os.kill(pids[0], signal.SIGKILL)
        assert front.child.wait(20) == 128 + signal.SIGKILL
        tools.until(all_gone(pids), "the end of the workers")


@linux_only
def test_nginx_does_not_outlive_its_killed_keeper(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front:
        pids = family(front.master)
        front.child.kill()
        tools.until(all_gone(pids), "the end of nginx")


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], start_new_session=True)
print(child.pid, flush=True)
sys.stdin.read()
"""


@linux_only
def test_nginx_does_not_outlive_its_killed_supervisor(
    binary: str, make_service: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    service = make_service(tmp_path, binary=binary)
    service.install()
    with tools.Core(service.gateway.core_socket):
        argv = [sys.executable, "-c", PARENT, *service.argv(service.nginx())]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            keeper = int(parent.stdout.readline())
            ask = service.ready()
            tools.until(lambda: asyncio.run(ask()), "nginx's answer")
            pids = [keeper, *family(int(service.layout.pid_file.read_text()))]
            assert len(pids) > 2
            parent.kill()
        tools.until(all_gone(pids), "the end of nginx")


async def test_the_supervisor_starts_restarts_and_ends_nginx(
    binary: str, make_service: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    service = make_service(tmp_path, binary=binary)
    said: list[str] = []
    supervisor, ready = Supervisor(service.processes(), said.append), asyncio.Event()

    async def on_ready() -> None:
        ready.set()

    with tools.Core(service.gateway.core_socket):
        task = asyncio.create_task(supervisor.run(on_ready))
        async with asyncio.timeout(20):
            await ready.wait()
        first = family(int(service.layout.pid_file.read_text()))
        os.kill(first[0], signal.SIGKILL)
        end = time.monotonic() + 20
        while not any("is back" in line for line in said):
            assert time.monotonic() < end, said
            await asyncio.sleep(0.02)
        second = family(int(service.layout.pid_file.read_text()))
        assert all_gone(first)() and is_running(second[0])
        supervisor.stop.set()
        async with asyncio.timeout(20):
            await task
        assert all_gone(second)()


def test_a_refused_configuration_stops_the_start_with_nginxs_words(
    make_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = make_service(tmp_path, certificate="/nowhere.pem", certificate_key="/nowhere.key")
    with pytest.raises(PluginError, match=r"(?s)nginx refuses.*cannot load certificate \"/nowhere\.pem\""):
        service.processes()
    assert not service.layout.config_file.exists()


def test_a_port_that_is_taken_is_named(make_service: Callable[..., Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PluginError, match=f"cannot listen on 127.0.0.1 port {port}"):
            make_service(tmp_path, port=port).processes()


def test_somebody_elses_answer_on_the_port_does_not_make_nginx_ready(
    binary: str, running: Callable[..., Any], make_service: Callable[..., Any], tmp_path: Path
) -> None:
    with running(tmp_path / "one", binary=binary) as front:
        assert asyncio.run(front.service.ready()())
        assert not asyncio.run(make_service(tmp_path / "two", port=front.port).ready()())


def test_without_nginx_the_core_is_served_alone_and_that_is_said(
    make_service: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(tmp_path, {"listen": "127.0.0.1:8080"}, binary="/nowhere/nginx")
    assert service.processes() == []
    assert [record.getMessage().splitlines() for record in caplog.records] == [
        [
            "serving without TLS, and the core delivers every answer: no nginx can be run (/nowhere/nginx cannot "
            "be run: No such file or directory): install nginx, or run `headrace nginx fetch`"
        ]
    ]
    assert service.announce() == {"url": "http://127.0.0.1:8080/v1"}


def test_a_required_nginx_that_cannot_run_stops_the_start(make_service: Callable[..., Any], tmp_path: Path) -> None:
    service = make_service(tmp_path, binary="/nowhere/nginx", required=True)
    with pytest.raises(PluginError, match="no nginx can be run"):
        service.processes()


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"port": 8443}, "https://localhost:8443/v1"),
        ({"port": 443, "server_name": ["api.test", "localhost"]}, "https://api.test/v1"),
        ({"port": 80, "tls": False}, "http://localhost/v1"),
        ({"port": 8443, "address": "10.1.2.3"}, "https://10.1.2.3:8443/v1"),
        ({"port": 8443, "address": "::"}, "https://localhost:8443/v1"),
    ],
)
def test_the_url_that_is_announced(
    make_service: Callable[..., Any], tmp_path: Path, options: dict[str, Any], url: str
) -> None:
    assert make_service(tmp_path, **options).announce()["url"] == url


def test_the_authority_of_the_development_certificate_is_announced(
    make_service: Callable[..., Any], tmp_path: Path
) -> None:
    assert make_service(tmp_path).announce()["cacert"] == str(tmp_path / "tls" / "ca.pem")
    assert "cacert" not in make_service(tmp_path, tls=False).announce()


def test_the_environment_gives_the_port(tmp_path: Path) -> None:
    from headrace.gateway import Gateway
    from headrace.settings import parse

    reference = {"env": "HEADRACE_PORT", "default": 8443}
    document = {"server": {"state_dir": str(tmp_path)}, "plugins": {"nginx": {"port": reference}}}
    found = [Gateway(parse(document, environ=env)).plugins["nginx"] for env in ({}, {"HEADRACE_PORT": "9443"})]
    assert [plugin.config.port for plugin in found] == [8443, 9443]


def test_plain_http_and_a_redirect_are_served(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path / "plain", binary=binary, tls=False) as front:
        arrived = dict(map(tuple, front.ask().json()["headers"]))
        assert arrived["X-Forwarded-Proto"] == "http"
        assert front.ask(method="TRACE").json()["error"]["code"] == "method_not_allowed"
    port = free_port()
    with running(tmp_path / "redirect", binary=binary, redirect_port=port) as front:
        done = front.curl("-i", "-X", "POST", f"http://localhost:{port}/v1/models?x=1")
        assert " 308 " in done.stdout.splitlines()[0]
        assert f"Location: https://localhost:{front.port}/v1/models?x=1" in done.stdout
        assert '"method_not_allowed"' in front.curl("-X", "TRACE", f"http://localhost:{port}/").stdout


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become somebody else")
def test_it_runs_unprivileged(binary: str, make_service: Callable[..., Any], tools: Any) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as folder:
        service = make_service(Path(folder) / "state", binary=binary)
        found = service.nginx()
        service._found = Nginx(found.path, msgspec.structs.replace(found.platform, user=None))
        service.install()
        with tools.Core(service.gateway.core_socket):
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            program = shutil.copy(found.path, folder)  # where anybody may look
            argv = [program, *service._nginx_argv(found)[1:]]
            with subprocess.Popen(argv, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[]) as child:
                try:
                    ask = service.ready()
                    tools.until(lambda: child.poll() is not None or asyncio.run(ask()), "nginx's answer")
                    assert child.poll() is None
                    assert Path(f"/proc/{child.pid}").stat().st_uid == nobody.pw_uid
                finally:
                    child.terminate()
        assert child.returncode == 0
