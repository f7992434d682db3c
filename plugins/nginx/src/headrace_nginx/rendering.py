"""The nginx configuration as text: a pure function of the gateway's configuration, the platform and the layout.

One function per block. A comment in the output says why a line is there where the line alone does not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import limits, logs, offloading, proxying
from .answers import Answer, answers, error_pages
from .answers import maps as answer_maps
from .binary import Platform
from .config import NginxConfig
from .handover import Handover
from .layout import Layout
from .quoting import duration, quoted_path, size

if TYPE_CHECKING:
    from headrace.gateway import Gateway

HEADER = "# rendered by headrace nginx render; do not edit"
HTTP2_DIRECTIVE_SINCE = (1, 25, 1)
"""`http2 on;` replaced `listen … http2` (nginx CHANGES 1.25.1)."""
KEEPALIVE_MIN_SINCE = (1, 27, 4)
"""Since when nginx, told to go, spares connections that were idle for a moment only (nginx CHANGES 1.27.4)."""
KEPT_AT_RELOADS = "2s"
"""A client that asks again within this time is answered though nginx was reloaded; a stop may wait as long."""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
PLACES = ("http", "server", "location")


def render(gateway: Gateway, config: NginxConfig, platform: Platform, layout: Layout, handover: Handover | None) -> str:
    """The whole configuration file. Without a `handover` the core delivers every answer.

    Raises:
        ValueError: a path or a fragment cannot stand in an nginx configuration.
    """
    fragments = merge_fragments(gateway.hooks.nginx_fragments(gateway))
    limit = config.max_body_bytes or gateway.config.server.max_body_bytes
    found = answers(config, limit, gateway.walls)
    http = [
        *_http_basics(gateway, config, platform, layout, limit),
        *logs.access_log(config, layout),
        *limits.zones(config.throttle, gateway.walls, platform, layout),
        *proxying.maps(),
        *answer_maps(found),
        "",
        *proxying.upstream(layout, gateway.config.server.workers),
        *(["", *offloading.in_http(handover, layout, platform)] if handover is not None else []),
        *_fragment(fragments, "http"),
        *_server(gateway, config, platform, layout, handover, found, fragments),
        *(_redirect_server(config, found) if config.redirect_port else ()),
    ]
    lines = [
        HEADER,
        "",
        *_main(gateway, config, platform, layout, handover is not None),
        *block("events", _events(config)),
        "",
        *block("http", http),
    ]
    return "\n".join(lines) + "\n"


def block(head: str, lines: Iterable[str]) -> list[str]:
    """Lines in braces, indented."""
    return [f"{head} {{", *(f"    {line}" if line else "" for line in lines), "}"]


def merge_fragments(fragments: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """What plugins add, by place and in their order.

    Raises:
        ValueError: a place that does not exist.
    """
    merged: dict[str, list[str]] = {place: [] for place in PLACES}
    for fragment in fragments:
        for place, text in fragment.items():
            if place not in merged:
                raise ValueError(f"nginx_fragments: there is no place {place!r}; places are {', '.join(PLACES)}")
            merged[place] += text.strip("\n").splitlines()
    return merged


def _fragment(fragments: Mapping[str, list[str]], place: str) -> list[str]:
    return ["", "# added by plugins (hook nginx_fragments)", *fragments[place]] if fragments[place] else []


def _main(gateway: Gateway, config: NginxConfig, platform: Platform, layout: Layout, scripted: bool) -> list[str]:
    error_log = layout.log_file(config.error_log)
    lines = [
        "# The supervisor watches the master process, so it stays in the foreground.",
        "daemon off;",
        "master_process on;",
        f"worker_processes {config.workers or 'auto'};",
        f"worker_rlimit_nofile {config.worker_connections * 2 + 64};",
        f"pid {quoted_path(layout.pid_file, 'pid file')};",
        logs.error_log(error_log, config.error_log_level),
    ]
    if platform.user is not None:
        lines += [
            "# Started by root, workers stay root: nobody else may open the socket of the core.",
            f"user {platform.user};",
        ]
    if (scripted or limits.needs_njs(config.throttle, gateway.walls)) and platform.njs not in (None, "builtin"):
        lines += [f'load_module "{platform.njs}";']
    if scripted and platform.watcher is not None:
        lines += [f"load_module {quoted_path(Path(platform.watcher), 'module')};"]
    return [*lines, ""]


def _events(config: NginxConfig) -> list[str]:
    return [f"worker_connections {config.worker_connections};"]


def _http_basics(
    gateway: Gateway, config: NginxConfig, platform: Platform, layout: Layout, max_body_bytes: int
) -> list[str]:
    header_bytes = gateway.config.server.max_header_bytes
    temporary = [f"{kind}_temp_path {quoted_path(layout.temporary(kind), 'temporary path')};" for kind in TEMPORARY]
    return [
        "default_type application/json;",
        "server_tokens off;",
        *temporary,
        "",
        "# What a request may be. The core checks again, exactly; this keeps floods out of Python. Headers get twice",
        "# the room they may fill: over HTTP/2 nginx hangs up on a larger one, where the core would say why.",
        f"client_max_body_size {max_body_bytes};",
        "client_body_buffer_size 128k;",
        "client_header_buffer_size 4k;",
        f"large_client_header_buffers 2 {size(2 * max(header_bytes, 4096))};",
        "ignore_invalid_headers on;",
        "# X_Real_IP and X-Real-IP become one name in many programs: only the one with dashes is let through.",
        "underscores_in_headers off;",
        "",
        "# Slow clients.",
        f"client_header_timeout {duration(config.client_header_timeout)};",
        f"client_body_timeout {duration(config.client_body_timeout)};",
        f"send_timeout {duration(config.send_timeout)};",
        f"keepalive_timeout {duration(config.keepalive_timeout)};",
        *([f"keepalive_min_timeout {KEPT_AT_RELOADS};"] if platform.version >= KEEPALIVE_MIN_SINCE else []),
        "reset_timedout_connection on;",
        "",
    ]


def _server(
    gateway: Gateway,
    config: NginxConfig,
    platform: Platform,
    layout: Layout,
    handover: Handover | None,
    found: list[Answer],
    fragments: Mapping[str, list[str]],
) -> list[str]:
    headers = proxying.security_headers(config)
    location = [
        *proxying.to_core(gateway, config, hands_over=handover is not None),
        *headers,
        *limits.in_location(config.throttle, gateway.walls, platform),
        *_fragment(fragments, "location"),
    ]
    lines = [
        *_listen(config, platform),
        f"server_name {' '.join(config.server_name)};",
        *(_tls(config, layout) if config.tls else ()),
        "",
        *_errors(found, headers),
        *_fragment(fragments, "server"),
        "",
        *block("location /", location),
        *(offloading.locations(handover, gateway, config, platform, layout) if handover is not None else []),
    ]
    return ["", *block("server", lines)]


def _redirect_server(config: NginxConfig, found: list[Answer]) -> list[str]:
    port = "" if config.port == 443 else f":{config.port}"
    lines = [
        f"listen {_socket_address(config.address, config.redirect_port or 80)} default_server;",
        f"server_name {' '.join(config.server_name)};",
        "",
        *_errors(found, proxying.security_headers(config)),
        "",
        "# 308 keeps the method and the body.",
        *block("location /", [f"return 308 https://$host{port}$request_uri;"]),
    ]
    return ["", *block("server", lines)]


def _errors(found: list[Answer], headers: list[str]) -> list[str]:
    """nginx's own errors. What the core answers is passed on as it is: see proxy_intercept_errors."""
    return [
        "# Errors of nginx itself, in the same envelope as those of the core.",
        *error_pages(found, [*headers, *proxying.ERROR_HEADERS]),
    ]


def _listen(config: NginxConfig, platform: Platform) -> list[str]:
    directive = platform.version >= HTTP2_DIRECTIVE_SINCE
    wanted = config.tls and config.http2
    flags = " ssl" * config.tls + " http2" * (wanted and not directive)
    lines = [f"listen {_socket_address(config.address, config.port)} default_server{flags};"]
    return [*lines, "http2 on;"] if wanted and directive else lines


def _socket_address(address: str, port: int) -> str:
    parsed = ipaddress.ip_address(address)
    return f"[{parsed}]:{port} ipv6only=on" if parsed.version == 6 else f"{parsed}:{port}"


def _tls(config: NginxConfig, layout: Layout) -> list[str]:
    if config.certificate is not None and config.certificate_key is not None:
        certificate, key = layout.resolve(config.certificate), layout.resolve(config.certificate_key)
    else:
        certificate = key = layout.tls / "server.pem"
    return [
        f"ssl_certificate {quoted_path(certificate, 'certificate')};",
        f"ssl_certificate_key {quoted_path(key, 'certificate_key')};",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "# TLS 1.2 with forward secrecy and authenticated encryption alone; TLS 1.3 has nothing else.",
        "ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;",
        "ssl_session_cache shared:headrace_tls:1m;",
        "# Tickets would be sealed with a key that lives as long as the process.",
        "ssl_session_tickets off;",
    ]
