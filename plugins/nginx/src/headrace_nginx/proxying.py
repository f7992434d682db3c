"""The way from nginx to the core and back: connections, headers, timeouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.front import AGAIN_PATH

from .answers import METHODS
from .config import NginxConfig
from .layout import Layout
from .quoting import duration, quoted_path

if TYPE_CHECKING:
    from headrace.config import Config
    from headrace.gateway import Gateway

IDLE_SECONDS = 60
"""How long nginx keeps an unused connection to the core. The core keeps its end longer (75 s), so that nginx never
sends a request into a connection that is being closed."""
MARGIN_SECONDS = 30.0
"""How much longer than the core nginx waits: the core's own timeouts shall come first and say what was slow."""
LEAST_READ_SECONDS = 660.0

ACCEL_HEADERS = ("X-Accel-Redirect", "X-Accel-Buffering", "X-Accel-Limit-Rate", "X-Accel-Expires", "X-Accel-Charset")
INTERNAL_HEADERS = (
    *ACCEL_HEADERS,
    "X-Headrace-Exchange",
    "X-Headrace-Failed",
    "X-Headrace-Mark",
    "X-Headrace-Retry-After",
    "X-Headrace-Spooled",
)
"""Names that mean something between nginx and the core: a client's own are dropped."""
FORWARDED_HEADERS = (
    "Forwarded",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "X-Client-IP",
    "X-Original-URL",
    "X-Rewrite-URL",
    "True-Client-IP",
    "Proxy",
)
"""Other names by which a client might claim to be somebody else."""

SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
)
HSTS = "Strict-Transport-Security"
ERROR_HEADERS = ["add_header Cache-Control no-store always;", "add_header X-Request-ID $headrace_request_id always;"]


def maps() -> list[str]:
    """Variables that depend on the request or on what the core said."""
    return [
        "# A request keeps the id its client gave it, if the core would take it too; every other one gets a new one.",
        "map $http_x_request_id $headrace_request_id "
        '{ default $request_id; "~^[A-Za-z0-9._:-]{1,128}$" $http_x_request_id; }',
        "# A client of HTTP/1.0 need not name a host; the core is asked in HTTP/1.1, which must.",
        'map $http_host $headrace_host { default $http_host; "" $host; }',
        "# Anything but these methods is refused.",
        f"map $request_method $headrace_refused {{ default 1; {' '.join(f'{method} 0;' for method in METHODS)} }}",
        "# A security header is added where the core did not send its own.",
        *(
            f'map $upstream_http_{_variable(name)} $headrace_add_{_variable(name)} {{ default ""; "" "{value}"; }}'
            for name, value in SECURITY_HEADERS
        ),
    ]


def _variable(header: str) -> str:
    return header.lower().replace("-", "_")


def upstream(layout: Layout, workers: int) -> list[str]:
    """The core, over the unix sockets of its workers. Requests with one key go to the same one while it lives."""
    sockets = [quoted_path(layout.core(number), "socket of the core", "unix:") for number in range(workers)]
    shared = [
        "map $http_authorization $headrace_bearer "
        '{ default $http_authorization; "~*^\\s*bearer\\s+(?<headrace_key>\\S+)" $headrace_key; }',
        'map $headrace_bearer $headrace_credential { default $headrace_bearer; "" $http_x_api_key; }',
        'map $headrace_credential $headrace_whose { default $headrace_credential; "" $remote_addr; }',
    ]
    return [
        *(shared if workers > 1 else []),
        "upstream headrace_core {",
        *(["    hash $headrace_whose consistent;"] if workers > 1 else []),
        *(f"    server {socket} max_fails=0;" for socket in sockets),
        "    keepalive 64;",
        f"    keepalive_timeout {IDLE_SECONDS}s;",
        "}",
    ]


def security_headers(config: NginxConfig) -> list[str]:
    """`add_header` lines. HSTS only with a real certificate: a browser would lock users out of a development one."""
    lines = [f"add_header {name} $headrace_add_{_variable(name)} always;" for name, _ in SECURITY_HEADERS]
    if config.certificate is not None and config.hsts_seconds:
        lines.append(f'add_header {HSTS} "max-age={config.hsts_seconds}" always;')
    return lines


def to_core(gateway: Gateway, config: NginxConfig, *, hands_over: bool) -> list[str]:
    """Everything in the location that proxies to the core. With `hands_over`, the core may hand requests over."""
    obeyed = (
        "# The core may name the location in which a request goes on: its answers that come from a backend cannot."
        if hands_over
        else "# Answers of the core pass as they are. They may come from a backend: none may steer nginx."
    )
    return [
        "if ($headrace_refused) { return 405; }",
        "",
        "proxy_pass http://headrace_core;",
        *_asked(gateway, config, _marks() if hands_over else []),
        "",
        obeyed,
        "proxy_intercept_errors off;",
        f"proxy_ignore_headers {' '.join(ACCEL_HEADERS[1:] if hands_over else ACCEL_HEADERS)};",
        *(["proxy_hide_header X-Headrace-Report;"] if hands_over else []),
    ]


def asked_again(gateway: Gateway, config: NginxConfig) -> list[str]:
    """The location in which the core is asked what to do about a backend that failed. It has the body already."""
    given = [
        *_marks(),
        ("X-Headrace-Failed", "$headrace_failed"),
        ("X-Headrace-Retry-After", "$headrace_retry_after"),
        ("Content-Length", '""'),
    ]
    return [
        'set $headrace_failed "$upstream_status|$upstream_connect_time|$upstream_header_time";',
        "set $headrace_retry_after $headrace_wait;",
        f"set $headrace_again {AGAIN_PATH};",
        "proxy_pass http://headrace_core$headrace_again;",
        "proxy_pass_request_body off;",
        *_asked(gateway, config, given),
        "proxy_intercept_errors off;",
        f"proxy_ignore_headers {' '.join(ACCEL_HEADERS[1:])};",
        "proxy_hide_header X-Headrace-Report;",
    ]


def _marks() -> list[tuple[str, str]]:
    """What shows the core that a request came through us."""
    return [
        ("X-Headrace-Mark", "$headrace_mark"),
        ("X-Headrace-Exchange", "$request_id"),
        ("X-Headrace-Spooled", "$request_body_file"),
    ]


def _asked(gateway: Gateway, config: NginxConfig, given: list[tuple[str, str]]) -> list[str]:
    """How the core is asked, wherever it is."""
    workers = gateway.config.server.workers
    return [
        "proxy_http_version 1.1;",
        *_request_headers(given),
        "",
        "# The body is taken in whole before the core is bothered; the answer leaves chunk by chunk as it comes.",
        "proxy_request_buffering on;",
        "proxy_buffering off;",
        "proxy_buffer_size 16k;",
        "proxy_buffers 8 16k;",
        "# A client that leaves takes its request to the core along.",
        "proxy_ignore_client_abort off;",
        *_timeouts(gateway, config),
        *(
            ["# A worker that is not there is passed by; one that has the request is not asked twice."]
            if workers > 1
            else ["# Requests are never sent twice: the core decides what may be tried again."]
        ),
        f"proxy_next_upstream {'error' if workers > 1 else 'off'};",
    ]


def _request_headers(more: list[tuple[str, str]]) -> list[str]:
    """Who the client is, said by nginx alone: set, never appended to what the client sent."""
    given = [
        ("Host", "$headrace_host"),
        ("Connection", '""'),
        ("X-Real-IP", "$remote_addr"),
        ("X-Forwarded-For", "$remote_addr"),
        ("X-Forwarded-Proto", "$scheme"),
        ("X-Request-ID", "$headrace_request_id"),
        *more,
    ]
    said = {name for name, _ in more}
    return [
        *(f"proxy_set_header {name} {value};" for name, value in given),
        "# Names that mean something between nginx and the core, or claim to be somebody else: dropped.",
        *(f'proxy_set_header {name} "";' for name in (*INTERNAL_HEADERS, *FORWARDED_HEADERS) if name not in said),
    ]


def _timeouts(gateway: Gateway, config: NginxConfig) -> list[str]:
    read = duration(config.read_timeout or longest_wait(gateway.config) + gateway.longest_admission)
    return [
        "proxy_connect_timeout 5s;",
        f"proxy_send_timeout {duration(gateway.config.server.body_timeout)};",
        f"proxy_read_timeout {read};",
    ]


def longest_wait(config: Config) -> float:
    """Seconds the core may be silent by its own configuration: a model's backends asked one after another."""
    waits = [LEAST_READ_SECONDS]
    for model in config.models.values():
        used = [*model.targets, *(model.fallback if model.use_fallback else ())]
        limits = [(config.backends[each] if isinstance(each, str) else each).timeouts for each in used]
        before_first_byte = sum(each.connect + each.first_byte for each in limits)
        waits.append(max(before_first_byte, *(each.idle for each in limits), 0.0) + MARGIN_SECONDS)
    return max(waits)
