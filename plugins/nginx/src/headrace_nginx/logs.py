"""What nginx logs, and what it must not: no key, no cookie, no query string."""

from __future__ import annotations

from pathlib import Path

from .config import NginxConfig
from .layout import Layout
from .quoting import quoted_path

FIELDS = (
    '"time":"$time_iso8601"',
    '"request_id":"$headrace_request_id"',
    '"client":"$remote_addr"',
    '"method":"$headrace_method"',
    '"path":"$headrace_path"',
    '"status":$headrace_status',
    '"bytes":$body_bytes_sent',
    '"duration":$request_time',
    '"upstream_status":$headrace_upstream_status',
    '"upstream_duration":$headrace_upstream_duration',
    '"completed":$headrace_completed',
    '"protocol":"$server_protocol"',
    '"tls":"$ssl_protocol"',
)
"""The fields of one access log line; durations in seconds."""


def access_log(config: NginxConfig, layout: Layout) -> list[str]:
    """The format, and where it goes."""
    path = layout.log_file(config.access_log)
    where = "off" if path is None else f"{quoted_path(path, 'access_log')} headrace buffer=32k flush=1s"
    lines = [
        "# One JSON object per request. No header but the request id, no query string: keys travel in both.",
        *_maps(),
        "log_format headrace escape=json '{'",
        *(f"    '{field},'" for field in FIELDS[:-1]),
        f"    '{FIELDS[-1]}' '}}';",
        f"access_log {where};",
    ]
    if not config.log_request_errors:
        lines += [
            "# nginx writes whole request lines, query strings included, when it logs an error of one request.",
            error_log(layout.log_file(config.error_log), "emerg"),
        ]
    return [*lines, ""]


def _maps() -> list[str]:
    """Values as JSON wants them: `000`, `-` and empty ones become numbers, booleans or null.

    The method is read from the request line, because nginx answers its own errors as if they were a GET.
    """
    return [
        'map $request_uri $headrace_path { default ""; "~^(?<headrace_plain_path>[^?#]*)" $headrace_plain_path; }',
        'map $request $headrace_method { default ""; "~^(?<headrace_first_word>[A-Z]+) " $headrace_first_word; }',
        'map $status $headrace_status { default 0; "~^[1-9]" $status; }',
        "# Of several servers visited (the core, then backends) the last one counts.",
        "map $upstream_status $headrace_upstream_status "
        '{ default null; "~(?<headrace_last_status>[1-9][0-9]*)$" $headrace_last_status; }',
        "map $upstream_response_time $headrace_upstream_duration "
        '{ default null; "~(?<headrace_last_time>[0-9.]+)$" $headrace_last_time; }',
        "map $request_completion $headrace_completed { default false; OK true; }",
    ]


def error_log(path: Path | None, level: str) -> str:
    """The `error_log` line for a file, or for nowhere."""
    return f"error_log {'/dev/null' if path is None else quoted_path(path, 'error_log')} {level};"
