"""The rendering of what is handed over: real nginx accepts it, and no secret stands in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import front
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import free_port
from headrace_nginx.binary import PORTABLE
from headrace_nginx.commands import portable_text
from headrace_nginx.config import NginxConfig
from headrace_nginx.handover import plan
from headrace_nginx.layout import Layout
from headrace_nginx.rendering import render
from headrace_nginx.service import Service


@pytest.fixture
def service_of(tmp_path: Path, binary: Any) -> Callable[..., Service]:
    """nginx's side of a gateway with these backends, each with a model of its own."""

    def make(*backends: dict[str, Any], server: dict[str, Any] | None = None, **options: Any) -> Service:
        named = {f"b{number}": {"provider": "openai", **each} for number, each in enumerate(backends)}
        document = {
            "server": {"state_dir": str(tmp_path / "state"), **(server or {})},
            "backends": named,
            "models": {name: {"targets": [name]} for name in named},
            "plugins": {"openai": {}, "nginx": {"port": free_port(), "binary": binary.path, "workers": 1} | options},
        }
        service: Service = Gateway(parse(document)).assemble().plugins["nginx"].service
        binary.equip(service)
        return service

    return make


def test_every_kind_of_backend_is_accepted(service_of: Callable[..., Service], tmp_path: Path) -> None:
    own = service_of({"base_url": "http://127.0.0.1/v1"})
    own.install()  # makes a certificate to trust
    service = service_of(
        {"base_url": "https://localhost/v1"},
        {"base_url": "https://127.0.0.1:444/v1", "verify": False},
        {"base_url": "https://localhost:445/v1", "verify": str(own.layout.tls / "ca.pem")},
        {"base_url": "http://[::1]:8000/v1"},
        {"base_url": "https://[2001:db8::1]/v1", "verify": False},
        {"base_url": "http://localhost:65535/a/b%20c/v1"},
        {"base_url": "http://LOCALHOST:1/v1", "max_connections": 1},
        {"base_url": "http://127.0.0.1:2/v1", "timeouts": {"connect": 0.0001, "idle": 31_000_000, "keep_alive": 0}},
        {"base_url": "http://127.0.0.1:3/v1", "timeouts": {"keep_alive": 3600, "first_byte": 0.5}},
    )
    service.check()
    assert service.render().count("\n    upstream headrace_") == 10


def test_a_unix_socket_is_accepted(staged: Callable[..., Any], binary: Any, tmp_path: Path) -> None:
    with staged(tmp_path, binary) as stage:
        text = stage.front.service.layout.config_file.read_text()
    assert f'server "unix:{tmp_path}/near.sock" max_fails=0 max_conns=1024;' in text


@pytest.mark.parametrize("host", ["a-b", "x" * 63, "under_score", "localhost.", "127.1", "xn--bcher-kva", "1a", "a..b"])
def test_hosts_that_mean_nothing_here_do_not_keep_nginx_from_starting(
    service_of: Callable[..., Service], host: str
) -> None:
    service = service_of({"base_url": f"http://{host}:8000/v1"})
    service.install()
    assert (front.read(service.gateway.runtime_dir / front.FRONT_FILE) is None) == ("@headrace" not in service.render())


@pytest.mark.parametrize("host", ["a;b", "a{b", "$host", 'a"b', "a'b", "a\\b", "a`b"])
def test_a_host_name_cannot_break_out_of_its_place(host: str) -> None:
    gateway = Gateway(parse({"plugins": {"nginx": {}}}))
    lane = front.Lane(False, f"{host}:80", host, True, 1, 1, 1, 1)
    handover = plan(gateway, [], [lane], ([], []))
    with pytest.raises(ValueError, match="cannot stand in an nginx configuration"):
        render(gateway, NginxConfig(), PORTABLE, Layout.portable(), handover)


def test_many_models_and_several_workers_are_accepted(service_of: Callable[..., Service]) -> None:
    backends = [{"base_url": f"https://localhost:{1 + number}/v1"} for number in range(300)]
    service = service_of(*backends, {**backends[0], "timeouts": {"connect": 1}}, server={"workers": 3})
    service.check()
    text = service.render()
    assert text.count("\n    upstream headrace_") == 301
    assert len(set(re.findall(r"location (@headrace_\w+)", text))) == 2 * 3 + 1
    assert text.count('access_log "syslog:server=') == 3
    for number in ("", "-1", "-2"):
        assert f'/core{number}.sock" max_fails=0;' in text


def test_odd_header_names_are_accepted(service_of: Callable[..., Service]) -> None:
    names = ["X", "x-1-2--3", "OpenAI-Project", "x-" + "y" * 60, "Cookie", "If-Match", "Link", "ETag", "Location"]
    service = service_of(
        {"base_url": "http://127.0.0.1:1/v1", "headers": {"X-Own": "1", "anthropic-version": "2", "X_Y": "3"}},
        request_headers=names,
        response_headers=names,
    )
    service.check()
    text = service.render()
    assert "proxy_set_header Anthropic-Version $headrace_send_anthropic_version;" in text


def test_no_secret_of_a_backend_stands_in_a_rendering(service_of: Callable[..., Service]) -> None:
    secrets = ["sk-very-secret", "header-secret", "bearer-secret"]
    service = service_of(
        {
            "base_url": "http://127.0.0.1:1/v1",
            "api_key": secrets[0],
            "headers": {"X-Secret": secrets[1], "Authorization": secrets[2]},
        }
    )
    service.install()
    assert "X-Secret $headrace_send_x_secret" in service.render()
    for file in service.layout.state.rglob("*"):
        if file.is_file():
            for secret in secrets:
                assert secret.encode() not in file.read_bytes(), file
    mark = front.read(service.gateway.runtime_dir / front.FRONT_FILE)
    assert mark is not None and mark.mark.partition("-")[0] not in service.render()


def test_a_portable_rendering_is_the_same_everywhere(
    service_of: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def text() -> str:
        backends = ({"base_url": "https://nowhere.invalid/v1"}, {"base_url": "http://127.0.0.1:1/v1", "verify": False})
        return portable_text(service_of(*backends, server={"workers": 2}, port=8443))

    before = text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert text() == before
    assert "server nowhere.invalid:443 max_fails=0" in before
    assert 'proxy_ssl_trusted_certificate "/etc/ssl/certs/ca-certificates.crt";' in before
    assert "syslog:server=unix:/var/lib/headrace/run/reports-1.sock" in before
    assert str(tmp_path) not in before


def test_a_portable_rendering_without_anything_to_hand_over_is_plain(service_of: Callable[..., Service]) -> None:
    text = portable_text(service_of({"base_url": "http://127.0.0.1:1/v1"}, server={"delivery": "inline"}))
    for word in ("js_import", "load_module", "@headrace", "X-Headrace-Mark $"):
        assert word not in text


def test_with_a_handover_the_core_alone_may_redirect(service_of: Callable[..., Service]) -> None:
    text = service_of({"base_url": "http://127.0.0.1:1/v1"}).render()
    ignored = re.findall(r"proxy_ignore_headers (.*);", text)
    inside = re.split(r"location (\S+) \{", text)
    assert len(ignored) == 1 + 3 + 1
    for name, block in zip(inside[1::2], inside[2::2], strict=True):
        found = re.search(r"proxy_ignore_headers (.*);", block)
        if found is not None:
            of_backend = name.startswith("@headrace") and name != "@headrace_again"
            assert ("X-Accel-Redirect" in found[1]) is of_backend, name
