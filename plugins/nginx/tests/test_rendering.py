"""The rendering itself: a pure function, and nothing in a configuration breaks out of its place."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from headrace import discovery, hookimpl
from headrace.config import BackendConfig
from headrace.errors import ConfigError, HeadraceError, envelope
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import free_port
from headrace_nginx import NginxConfig, ThrottleConfig, answers, quoting
from headrace_nginx.binary import PORTABLE, Platform
from headrace_nginx.layout import Layout
from headrace_nginx.proxying import LEAST_READ_SECONDS, longest_wait
from headrace_nginx.rendering import merge_fragments, render

EVERYTHING = ThrottleConfig(
    requests_per_minute=60, address_requests_per_minute=600, connections_per_key=5, connections_per_address=50
)


def text_of(config: NginxConfig | None = None, platform: Platform = PORTABLE, **document: Any) -> str:
    gateway = Gateway(parse({"plugins": {"nginx": {}}, **document}))
    return render(gateway, config or NginxConfig(), platform, Layout.portable(), None)


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^\s*{name} (.*);$", text, re.MULTILINE)


def test_the_same_configuration_gives_the_same_text() -> None:
    config = NginxConfig(throttle=EVERYTHING, redirect_port=80)
    assert text_of(config) == text_of(config)
    assert text_of(config).startswith("# rendered by headrace nginx render; do not edit\n")


def test_a_portable_rendering_has_no_path_of_this_machine() -> None:
    text = text_of(NginxConfig(throttle=EVERYTHING, certificate="tls/c.pem", certificate_key="/etc/k.pem"))
    assert directives(text, "ssl_certificate") == ['"/var/lib/headrace/tls/c.pem"']
    assert directives(text, "ssl_certificate_key") == ['"/etc/k.pem"']
    assert str(Path.cwd()) not in text and str(Path.home()) + "/" not in text
    assert "user " not in text


def test_every_option_together_is_accepted_by_the_real_nginx(
    binary: str, make_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = make_service(
        tmp_path / "with space",
        binary=binary,
        throttle=msgspec.to_builtins(EVERYTHING),
        redirect_port=free_port(),
        server_name=["localhost", "*.example.com"],
        error_log="off",
        access_log="off",
        log_request_errors=True,
        keepalive_timeout=0.5,
        send_timeout=1.25,
    )
    service.check()
    assert not service.layout.config_file.exists()
    assert list(service.layout.runtime.glob(".check*")) == []


def test_http2_is_asked_for_as_the_version_of_nginx_understands_it() -> None:
    old = text_of(platform=Platform(version=(1, 25, 0)))
    new = text_of(platform=Platform(version=(1, 25, 1)))
    off = text_of(NginxConfig(http2=False), Platform(version=(1, 25, 1)))
    assert directives(old, "listen") == ["127.0.0.1:8443 default_server ssl http2"]
    assert directives(new, "listen") == directives(off, "listen") == ["127.0.0.1:8443 default_server ssl"]
    assert (directives(old, "http2"), directives(new, "http2"), directives(off, "http2")) == ([], ["on"], [])


@pytest.mark.parametrize(("version", "lines"), [((1, 27, 3), []), ((1, 27, 4), ["2s"])])
def test_connections_of_busy_clients_outlive_a_reload_where_nginx_can(
    version: tuple[int, int, int], lines: list[str]
) -> None:
    assert directives(text_of(platform=Platform(version=version)), "keepalive_min_timeout") == lines


@pytest.mark.parametrize(("address", "written"), [("::", "[::]:8443 ipv6only=on"), ("0.0.0.0", "0.0.0.0:8443")])
def test_an_address_is_written_as_nginx_reads_it(address: str, written: str) -> None:
    assert directives(text_of(NginxConfig(address=address)), "listen") == [f"{written} default_server ssl http2"]


def test_strict_transport_security_needs_a_real_certificate() -> None:
    real = NginxConfig(certificate="/c.pem", certificate_key="/k.pem")
    assert 'add_header Strict-Transport-Security "max-age=31536000" always;' in text_of(real)
    assert "Strict-Transport-Security" not in text_of(msgspec.structs.replace(real, hsts_seconds=0))
    assert "Strict-Transport-Security" not in text_of()


def test_limits_come_from_the_core_unless_they_are_set_here() -> None:
    server = {"max_body_bytes": 1000, "max_header_bytes": 65536}
    assert directives(text_of(server=server), "client_max_body_size")[0] == "1000"
    assert directives(text_of(server=server), "large_client_header_buffers") == ["2 128k"]
    assert directives(text_of(NginxConfig(max_body_bytes=5), server=server), "client_max_body_size")[0] == "5"
    assert "The body is larger than 5 bytes." in text_of(NginxConfig(max_body_bytes=5))


def test_nginx_waits_longer_than_the_core_does() -> None:
    def waits(*seconds: float) -> float:
        targets = [
            {"provider": "openai", "base_url": f"http://h{number}", "timeouts": {"first_byte": each, "connect": 5}}
            for number, each in enumerate(seconds)
        ]
        return longest_wait(parse({"models": {"m": {"targets": targets}}}))

    assert waits(10) == LEAST_READ_SECONDS
    assert waits(1000, 2000) == 3040
    assert BackendConfig(provider="x").timeouts.first_byte < LEAST_READ_SECONDS
    assert directives(text_of(NginxConfig(read_timeout=1.5)), "proxy_read_timeout") == ["1500ms"]


def test_nothing_about_keys_is_loaded_when_nothing_counts_them() -> None:
    for word in ("js_import", "load_module", "limit_req", "limit_conn"):
        assert word not in text_of()
    limited = NginxConfig(throttle=ThrottleConfig(requests_per_minute=60, burst=0))
    assert directives(text_of(limited), "load_module") == ['"/usr/lib/nginx/modules/ngx_http_js_module.so"']
    assert "load_module" not in text_of(limited, Platform(njs="builtin"))
    assert "$http_authorization" not in text_of(limited)
    assert directives(text_of(limited, Platform()), "limit_req_zone") == [
        "$binary_remote_addr zone=headrace_rate_caller:10240k rate=60r/m"
    ]


def test_every_answer_says_what_the_core_would_say() -> None:
    for answer in answers.answers(NginxConfig(), 10):
        assert quoting.quoted_json(envelope(answer.error)) in text_of(NginxConfig(max_body_bytes=10))
        assert answer.error.code
    statuses = {answer.status for answer in answers.answers(NginxConfig(), 10)}
    assert statuses == {400, 401, 403, 404, 405, 408, 413, 414, 429, 431, 500, 502, 503, 504}


def test_lines_of_other_plugins_stand_in_their_places() -> None:
    assert merge_fragments([{"http": "a;\nb;\n", "location": "c;"}, {"http": "d;"}]) == {
        "http": ["a;", "b;", "d;"],
        "server": [],
        "location": ["c;"],
    }
    with pytest.raises(ValueError, match="there is no place 'upstream'"):
        merge_fragments([{"upstream": ""}])


class Neighbour:
    """A plugin that has something to say to nginx."""

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    def nginx_fragments(self) -> dict[str, str]:
        return {"http": "limit_rate_after 10m;", "location": "# one\nlimit_rate 1m;"}


def test_a_plugins_lines_reach_the_real_nginx(
    make_service: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = discovery.Found("neighbour", "headrace-neighbour", "1", "neighbour_module:Neighbour", None)
    known = {**discovery.installed(), "neighbour": neighbour}
    monkeypatch.setattr(discovery, "installed", lambda: known)
    monkeypatch.setitem(sys.modules, "neighbour_module", SimpleNamespace(Neighbour=Neighbour))
    gateway = Gateway(parse({"server": {"state_dir": str(tmp_path)}, "plugins": {"nginx": {}, "neighbour": {}}}))
    gateway.plugins["nginx"].service.install()
    text = (gateway.runtime_dir / "nginx" / "nginx.conf").read_text()
    assert "    # added by plugins (hook nginx_fragments)\n    limit_rate_after 10m;\n" in text
    assert "            # one\n            limit_rate 1m;\n        }" in text


BREAKING_OUT = ['/x"; load_module /evil.so; #', "/x;y", "/x\ny", "/$host", "/a{b}", "/a'b", "/a\\b", "/a\x00", ""]


@pytest.mark.parametrize("value", BREAKING_OUT)
@pytest.mark.parametrize("key", ["certificate", "access_log", "error_log"])
def test_a_path_cannot_break_out_of_its_place(key: str, value: str) -> None:
    options = {key: value, **({"certificate_key": "/k.pem"} if key == "certificate" else {})}
    with pytest.raises(ConfigError, match=r"\[plugins.*" + key):
        Gateway(parse({"plugins": {"nginx": options}}))


@pytest.mark.parametrize("name", ["a;b", "a b", "~^(.*)$", "$host", "", "a\nb", "-a", "a..b", 'a"', "_"])
def test_a_server_name_cannot_break_out_of_its_place(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name"):
        Gateway(parse({"plugins": {"nginx": {"server_name": [name]}}}))


@pytest.mark.parametrize("address", ["localhost", "1.2.3.4;", "unix:/x", "*", "fe80::1%eth0"])
def test_an_address_cannot_break_out_of_its_place(address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Gateway(parse({"plugins": {"nginx": {"address": address}}}))


def test_a_state_directory_with_a_dollar_is_refused_when_it_is_rendered(
    make_service: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(HeadraceError, match="cannot stand in an nginx configuration"):
        make_service(tmp_path / "a$b").install()


@given(some.text(min_size=1))
def test_whatever_is_quoted_stays_one_word(text: str) -> None:
    try:
        quoted = quoting.quoted_path(Path("/") / text, "path")
    except ValueError:
        return
    assert quoted[0] == quoted[-1] == '"'
    assert not set(quoted[1:-1]) & set("\"'\\${};`\n\r\x00")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certificate": "/c.pem"}, "certificate and certificate_key belong together"),
        ({"tls": False, "redirect_port": 80}, "tls is false"),
        ({"tls": False, "certificate": "/c", "certificate_key": "/k"}, "tls is false"),
        ({"port": 8443, "redirect_port": 8443}, "must differ"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"send_timeout": 0}, "send_timeout"),
        ({"server_name": []}, "at least one name"),
        ({"prot": 1}, "did you mean 'port'"),
        ({"throttle": {"requests_per_minute": 0}}, "requests_per_minute"),
    ],
)
def test_a_mistake_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gateway(parse({"plugins": {"nginx": options}}))


@pytest.mark.parametrize(("seconds", "written"), [(1, "1s"), (0.25, "250ms"), (0.00001, "1ms"), (3600.0, "3600s")])
def test_durations(seconds: float, written: str) -> None:
    assert quoting.duration(seconds) == written
