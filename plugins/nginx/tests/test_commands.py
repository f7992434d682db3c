"""`headrace nginx …`, and what the README says about it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_nginx import NginxConfig, ThrottleConfig
from headrace_nginx.commands import nginx

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command for the gateway of a service, as the `headrace` command would."""

    def run(gateway: Gateway, *arguments: str) -> Result:
        monkeypatch.setitem(sys.modules, "headrace.cli", SimpleNamespace(gateway_of=lambda _: gateway))
        return CliRunner().invoke(nginx, arguments)

    return run


def test_every_command_explains_itself() -> None:
    assert sorted(nginx.commands) == ["build", "check", "fetch", "reload", "render", "run"]
    for name in nginx.commands:
        assert nginx.commands[name].help
        assert CliRunner().invoke(nginx, [name, "--help"]).exit_code == 0


def test_render_prints_what_nginx_would_be_given(
    command: Callable[..., Result], make_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = make_service(tmp_path / "state")
    printed = command(service.gateway, "render")
    assert (printed.exit_code, printed.stdout) == (0, service.render())
    file = tmp_path / "nginx.conf"
    assert command(service.gateway, "render", "--output", str(file)).stdout == ""
    assert file.read_text() == service.render()
    assert not (tmp_path / "state").exists()


def test_render_portable_needs_no_nginx_and_names_no_path_of_this_machine(
    command: Callable[..., Result], make_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = make_service(tmp_path, binary="/nowhere/nginx")
    printed = command(service.gateway, "render", "--portable").stdout
    assert str(tmp_path) not in printed and "/var/lib/headrace/run/core.sock" in printed
    failed = command(service.gateway, "render")
    assert failed.exit_code == 1 and failed.stderr.startswith("Error: no nginx can be run (/nowhere/nginx")


def test_check_asks_the_real_nginx(
    command: Callable[..., Result], make_service: Callable[..., Any], binary: str, tmp_path: Path
) -> None:
    done = command(make_service(tmp_path, binary=binary).gateway, "check")
    assert done.stdout.startswith(f"ok: {binary} (1."), done.output
    refused = make_service(tmp_path, binary=binary, certificate="/nowhere.pem", certificate_key="/nowhere.key")
    failed = command(refused.gateway, "check")
    assert failed.exit_code == 1 and "nginx refuses the configuration" in failed.stderr
    assert "Traceback" not in failed.output


def test_reload_reaches_the_running_nginx(
    command: Callable[..., Result], running: Callable[..., Any], binary: str, tmp_path: Path
) -> None:
    with running(tmp_path, binary=binary) as front:
        assert str(front.master) in command(front.service.gateway, "reload").stdout
    assert command(front.service.gateway, "reload").exit_code == 1


def test_fetch_does_nothing_where_an_nginx_runs(
    command: Callable[..., Result], make_service: Callable[..., Any], binary: str, tmp_path: Path
) -> None:
    service = make_service(tmp_path, binary=binary)
    assert binary in command(service.gateway, "fetch").stdout
    assert not service.layout.wheel.exists()


def test_a_configuration_without_the_plugin_is_told(command: Callable[..., Result]) -> None:
    failed = command(Gateway(parse({})), "check")
    assert failed.exit_code == 1 and "has no [plugins.nginx]" in failed.stderr


RUN = """
import sys
from types import SimpleNamespace
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_nginx.commands import nginx
options = {"port": int(sys.argv[2]), "binary": sys.argv[3], "workers": 1, "worker_connections": 64}
gateway = Gateway(parse({"server": {"state_dir": sys.argv[1]}, "plugins": {"nginx": options}}))
sys.modules["headrace.cli"] = SimpleNamespace(gateway_of=lambda _: gateway)
nginx(["run"])
"""


def test_run_passes_signals_on(make_service: Callable[..., Any], binary: str, tmp_path: Path, tools: Any) -> None:
    service = make_service(tmp_path, binary=binary)
    service.gateway.make_dirs()
    with tools.Core(service.gateway.core_socket):
        argv = [sys.executable, "-c", RUN, str(tmp_path), str(service.config.port), binary]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
            try:
                ask = service.ready()
                tools.until(lambda: child.poll() is not None or asyncio.run(ask()), "nginx's answer")
                master = int(service.layout.pid_file.read_text())
                assert master != child.pid
                log = service.layout.logs / "access.log"
                log.unlink()
                child.send_signal(signal.SIGUSR1)
                tools.until(log.exists, "the new log")
            finally:
                child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(master, 0)


def test_the_readme_has_every_option_and_every_default() -> None:
    text = README.read_text()
    for struct in (NginxConfig, ThrottleConfig):
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"`(\[plugins\.nginx\.)?{field.name}[`\]]", text), field.name
    assert "| `port` | 8443 |" in text and NginxConfig().port == 8443


def test_the_examples_of_the_readme_are_accepted() -> None:
    import tomllib

    examples = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        Gateway(parse(tomllib.loads(example), environ={}))
