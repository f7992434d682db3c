"""Delivering answers: the blocks by which nginx asks the backends the core names, and reports how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import front
from headrace.choice import HANDOVERS
from headrace.delivery import NOT_OURS
from headrace.front import Lane

from .binary import Platform
from .config import NginxConfig
from .handover import Handover
from .layout import Layout
from .proxying import ACCEL_HEADERS, asked_again, security_headers
from .quoting import check_text, duration, quoted_event, quoted_path
from .scripts import ending_events

if TYPE_CHECKING:
    from headrace.gateway import Gateway

HIDDEN = sorted(
    {name.decode() for name in NOT_OURS}
    - {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
    | {f"access-control-{name}" for name in ("allow-credentials", "allow-headers", "allow-methods", "allow-origin")}
    | {f"access-control-{name}" for name in ("expose-headers", "max-age", "request-headers", "request-method")}
    | {"access-control-allow-private-network", *(name for name in front.CARRIED if name.startswith("x-"))}
    | {f"x-headrace-{name}" for name in ("authorization", "edits", "group", "host", "more", "report", "uri", "watch")}
)
"""Headers of backends that are the gateway's own to say; nginx itself takes care of the hop-by-hop ones."""
TRY_AGAIN = " ".join(map(str, (*range(300, 309), 401, 403, 407, 429, *range(500, 531), 598, 599)))
"""Statuses that another backend might better, or that are the operator's business: the core decides what to do."""
WATCHING = ("", "_watched", "_edited")
"""Endings of location names: as it is, with a look at the reply, and also with an edited request."""
REPORT = (
    '{"id":"$request_id","mark":"$headrace_mark","connection":$connection,"status":$headrace_status,'
    '"bytes":$body_bytes_sent,"completed":$headrace_completed,"header_time":"$upstream_header_time",'
    '"watched":[$headrace_seen]}'
)


def _variable(header: str) -> str:
    return header.lower().replace("-", "_")


_FORWARDED = {_variable(name): f"$http_{_variable(name)}" for name in front.FORWARDED} | {
    "content_type": "$headrace_own_content_type"
}
"""The client's own headers that are sent on, and where nginx finds them."""


def in_http(handover: Handover, layout: Layout, platform: Platform) -> list[str]:
    """Variables, reports, backends."""
    return [
        "# Answers that nginx delivers for the core: see the locations whose names begin with @headrace.",
        "uninitialized_variable_warn off;",
        "variables_hash_bucket_size 128;",
        "variables_hash_max_size 2048;",
        "proxy_headers_hash_bucket_size 128;",
        "proxy_headers_hash_max_size 1024;",
        f"include {quoted_path(layout.mark, 'mark file')};",
        f"js_import headrace_replies from {quoted_path(layout.replies, 'script')};",
        "# A variable of a script is worked out once per request: each try has one of its own.",
        *(f"js_set $headrace_body_{number} headrace_replies.body;" for number in range(1, HANDOVERS + 1)),
        "map $headrace_tries $headrace_body { volatile; "
        + " ".join(f"{'1' * number} $headrace_body_{number};" for number in range(1, HANDOVERS + 1))
        + " }",
        *_watcher(handover, platform),
        *_maps(),
        *_reports(handover),
        "",
        *(line for group in {lane.group: lane for lane in handover.lanes}.values() for line in _group(group)),
    ]


def _watcher(handover: Handover, platform: Platform) -> list[str]:
    """Who looks at replies: our own module, or the script."""
    if platform.watcher is not None:
        return [
            f"headrace_events {' '.join(map(quoted_event, ending_events()))};",
            *(line for each in handover.spoken for line in each.lines()),
        ]
    return [
        "js_set $headrace_watched headrace_replies.watched;",
        "js_var $headrace_whole;",
        'map $headrace_watch $headrace_looked { default $headrace_watched; "" ""; }',
        'map $headrace_whole $headrace_seen { default $headrace_whole; "" $headrace_looked; }',
    ]


def _maps() -> list[str]:
    """What is sent to a backend: the client's own, unless the core says otherwise."""
    return [
        'map $content_type $headrace_own_content_type { volatile; default $content_type; "" application/json; }',
        *(
            f"map $upstream_http_x_headrace_send_{name} $headrace_told_{name} "
            f'{{ volatile; default $upstream_http_x_headrace_send_{name}; "" {own}; }}'
            for name, own in _FORWARDED.items()
        ),
        'map $headrace_host $headrace_host_name { volatile; default $headrace_host; "~^(?<headrace_name>.+):[0-9]+$" '
        "$headrace_name; }",
        "map $upstream_http_retry_after $headrace_wait "
        '{ volatile; default ""; "~^[ -~]{1,64}$" $upstream_http_retry_after; }',
        "# A report tells of an answer that nginx delivered, of a client that left, and of what the core asks for.",
        'map "$status:$headrace_group$upstream_http_x_headrace_report" $headrace_reported '
        '{ default 1; "~^499:" 1; "~:$" 0; }',
        "# The core's worker that was asked last; the first one has no number.",
        'map $upstream_addr $headrace_worker { default ""; "~.*/core(?:-(?<headrace_number>[0-9]+))?\\.sock" '
        "$headrace_number; }",
    ]


def _reports(handover: Handover) -> list[str]:
    lines = [f"log_format headrace_report escape=none '{REPORT}';"]
    for number, address in enumerate(handover.reports):
        lines += [
            f'map "$headrace_reported:$headrace_worker" $headrace_report_{number} '
            f'{{ default 0; "1:{number or ""}" 1; }}',
            f"access_log {_syslog(address)} headrace_report if=$headrace_report_{number};",
        ]
    return lines


def _syslog(address: str) -> str:
    return f'"syslog:server={check_text(address, "report address")},nohostname,tag=headrace"'


def _group(lane: Lane) -> list[str]:
    if lane.address.startswith("unix:"):
        server = f'"{check_text(lane.address, "socket of a backend")}"'
    else:
        server = check_text(lane.address, "address of a backend")
    keep = ["    keepalive 64;", f"    keepalive_timeout {duration(lane.keep_alive)};"] if lane.keep_alive else []
    return [
        f"upstream {lane.group} {{",
        f"    zone {lane.group} 64k;",
        f"    server {server} max_fails=0 max_conns={lane.max_connections};",
        *keep,
        "}",
    ]


def locations(
    handover: Handover, gateway: Gateway, config: NginxConfig, platform: Platform, layout: Layout
) -> list[str]:
    """One for each way of asking a backend, and the one in which the core is asked what to do next."""
    by_name = {lane.location: lane for lane in handover.lanes}
    lines: list[str] = []
    for lane in by_name.values():
        for ending in WATCHING:
            inside = _location(lane, ending, handover, config, layout)
            inside += _filters(platform, watched=ending != "")
            lines += ["", f"location {lane.location}{ending} {{", *(f"    {line}" for line in inside), "}"]
    again = [*asked_again(gateway, config), *security_headers(config), *_filters(platform, watched=False)]
    return [*lines, "", "location @headrace_again {", *(f"    {line}" for line in again), "}"] if lines else []


def _location(lane: Lane, ending: str, handover: Handover, config: NginxConfig, layout: Layout) -> list[str]:
    edited, watched = ending == "_edited", ending != ""
    return [
        *_told(handover, edited=edited, watched=watched),
        f"proxy_pass {'https' if lane.tls else 'http'}://$headrace_group$headrace_uri;",
        *(['set $headrace_tries "${headrace_tries}1";', "proxy_set_body $headrace_body;"] if edited else []),
        *_request_headers(handover),
        *(_tls(lane, layout) if lane.tls else []),
        f"proxy_connect_timeout {duration(lane.connect)};",
        f"proxy_read_timeout {duration(lane.read)};",
        f"proxy_send_timeout {duration(lane.read)};",
        "proxy_http_version 1.1;",
        "proxy_buffering off;",
        "proxy_buffer_size 16k;",
        "proxy_buffers 8 16k;",
        "proxy_next_upstream off;",
        "# A backend steers nobody, and what is the gateway's to say it does not say.",
        f"proxy_ignore_headers {' '.join(ACCEL_HEADERS)};",
        *(f"proxy_hide_header {name};" for name in HIDDEN),
        "proxy_intercept_errors on;",
        "recursive_error_pages on;",
        f"error_page {TRY_AGAIN} = @headrace_again;",
        "# The core hears of backends that break off in the middle of a reply.",
        *(f"error_log {_syslog(address)} error;" for address in handover.reports),
        *(f"add_header {name} $headrace_carried_{_variable(name)} always;" for name in handover.response_headers),
        "add_header X-Request-ID $headrace_request_id always;",
        *security_headers(config),
        "# The end is reported when it has come, not when the client has hung up.",
        "lingering_close off;",
    ]


def _filters(platform: Platform, *, watched: bool) -> list[str]:
    """What looks at replies: what is no HTTP/1.1 goes to nobody."""
    if platform.watcher is not None:
        wanted = "$headrace_watch" if watched else '""'
        return [f"headrace_watch {wanted};", "headrace_failed $headrace_failed;"]
    body = ["js_body_filter headrace_replies.filter buffer_type=buffer;"] if watched else []
    return ["# What is no HTTP/1.1 goes to nobody.", "js_header_filter headrace_replies.head;", *body]


def _told(handover: Handover, *, edited: bool, watched: bool) -> list[str]:
    """What the core says in the headers of its redirect: they are gone once the backend is asked."""
    names = ["group", "uri", "host", "authorization", *(["watch"] if watched else []), *(["edits"] if edited else [])]
    more = [f"set $headrace_send_{name} $headrace_told_{name};" for name in _FORWARDED]
    more += [
        f"set $headrace_send_{name} $upstream_http_x_headrace_send_{name};"
        for name in map(_variable, handover.request_headers)
    ]
    more += [
        f"set $headrace_carried_{name} $upstream_http_{name};" for name in map(_variable, handover.response_headers)
    ]
    return [
        *(f"set $headrace_{name} $upstream_http_x_headrace_{name};" for name in names),
        *(f"set $headrace_send_{name} {own};" for name, own in _FORWARDED.items()),
        "if ($upstream_http_x_headrace_more) {",
        *(f"    {line}" for line in more),
        "}",
    ]


def _request_headers(handover: Handover) -> list[str]:
    given = [
        ("Host", "$headrace_host"),
        ("Connection", '""'),
        ("Authorization", "$headrace_authorization"),
        ("X-Request-ID", "$headrace_request_id"),
        ("Accept-Encoding", "identity"),
        *(
            (name.title(), f"$headrace_send_{_variable(name)}")
            for name in (*front.FORWARDED, *handover.request_headers)
        ),
    ]
    return ["proxy_pass_request_headers off;", *(f"proxy_set_header {name} {value};" for name, value in given)]


def _tls(lane: Lane, layout: Layout) -> list[str]:
    names = ["proxy_ssl_server_name on;", "proxy_ssl_name $headrace_host_name;", "proxy_ssl_protocols TLSv1.2 TLSv1.3;"]
    if lane.verify is False:
        return [*names, "proxy_ssl_verify off;"]
    trusted = layout.authorities if lane.verify is True else layout.resolve(str(lane.verify))
    return [
        *names,
        "proxy_ssl_verify on;",
        "proxy_ssl_verify_depth 5;",
        f"proxy_ssl_trusted_certificate {quoted_path(trusted, 'certificate authorities')};",
    ]
