"""Floods: requests and connections per key and per address."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.limits import Wall

from .binary import Platform
from .config import ThrottleConfig
from .layout import Layout
from .quoting import quoted_path, size

CALLER, SECOND, ADDRESS = "$headrace_caller", "$headrace_second", "$binary_remote_addr"
COUNTED = {"key": CALLER, "address": ADDRESS}
LARGEST_RATE, LARGEST_OPEN = 1_000_000, 30_000
SLACK = 8
"""Requests that nginx still counts although the core has done with them, or not yet seen them."""


def needs_njs(throttle: ThrottleConfig, walls: Sequence[Wall]) -> bool:
    """Whether anything is counted per key."""
    return (
        any(wall.per == "key" for wall in walls)
        or throttle.requests_per_minute is not None
        or throttle.connections_per_key is not None
    )


def _key_variables(platform: Platform) -> list[tuple[str, str]]:
    """The zones that count callers and what they count: hashes of keys, or addresses where nginx has no njs."""
    return [("caller", CALLER), ("second", SECOND)] if platform.njs is not None else [("caller", ADDRESS)]


def zones(throttle: ThrottleConfig, walls: Sequence[Wall], platform: Platform, layout: Layout) -> list[str]:
    """The shared memory of every limit that is set."""
    memory = size(throttle.memory_bytes)
    lines = _hashing(platform, layout) if needs_njs(throttle, walls) else []
    lines += _walls_in_http(_standing(walls, platform), memory)
    for name, variable in _key_variables(platform):
        if throttle.requests_per_minute is not None:
            rate = throttle.requests_per_minute
            lines.append(f"limit_req_zone {variable} zone=headrace_rate_{name}:{memory} rate={rate}r/m;")
        if throttle.connections_per_key is not None:
            lines.append(f"limit_conn_zone {variable} zone=headrace_open_{name}:{memory};")
    if throttle.address_requests_per_minute is not None:
        rate = throttle.address_requests_per_minute
        lines.append(f"limit_req_zone {ADDRESS} zone=headrace_rate_address:{memory} rate={rate}r/m;")
    if throttle.connections_per_address is not None:
        lines.append(f"limit_conn_zone {ADDRESS} zone=headrace_open_address:{memory};")
    if not lines:
        return []
    return ["# Limits.", *lines, "limit_req_status 429;", "limit_conn_status 429;", ""]


def _hashing(platform: Platform, layout: Layout) -> list[str]:
    if platform.njs is None:
        return ["# This nginx has no njs to hash keys with: callers are told apart by their address."]
    return [
        "# Callers are counted under a hash of their key: no key stands in nginx's memory.",
        f"js_import headrace from {quoted_path(layout.script, 'script')};",
        f"js_set {CALLER} headrace.caller;",
        f"js_set {SECOND} headrace.second;",
    ]


def _standing(walls: Sequence[Wall], platform: Platform) -> list[Wall]:
    """Those that this nginx can count: without njs it cannot tell one key from another, and its numbers have ends."""
    return [
        wall
        for wall in walls
        if wall.per != "key" or platform.njs is not None
        if (wall.requests_per_minute or 0) <= LARGEST_RATE and (wall.concurrent or 0) <= LARGEST_OPEN
    ]


def _walls_in_http(walls: Sequence[Wall], memory: str) -> list[str]:
    """What plugins limit anyway, exactly: nginx is generous, so that it never refuses what they would let pass."""
    lines = []
    for number, wall in enumerate(walls):
        counted = f"$headrace_wall_{number}"
        lines.append(f'map "$request_method $uri" {counted} {{ default ""; "~^POST /v1/" {COUNTED[wall.per]}; }}')
        if wall.requests_per_minute is not None:
            zone = f"headrace_wall_rate_{number}:{memory}"
            lines.append(f"limit_req_zone {counted} zone={zone} rate={2 * wall.requests_per_minute}r/m;")
        if wall.concurrent is not None:
            lines.append(f"limit_conn_zone {counted} zone=headrace_wall_open_{number}:{memory};")
    return lines


def _walls_in_location(walls: Sequence[Wall]) -> list[str]:
    lines = []
    for number, wall in enumerate(walls):
        if wall.requests_per_minute is not None:
            lines.append(f"limit_req zone=headrace_wall_rate_{number} burst={2 * wall.requests_per_minute} nodelay;")
        if wall.concurrent is not None:
            lines.append(f"limit_conn headrace_wall_open_{number} {2 * wall.concurrent + SLACK};")
    return lines


def in_location(throttle: ThrottleConfig, walls: Sequence[Wall], platform: Platform) -> list[str]:
    """The limits where they apply."""
    lines = _walls_in_location(_standing(walls, platform))
    for name, _ in _key_variables(platform):
        if throttle.requests_per_minute is not None:
            lines.append(_rate(name, throttle.burst))
        if throttle.connections_per_key is not None:
            lines.append(f"limit_conn headrace_open_{name} {throttle.connections_per_key};")
    if throttle.address_requests_per_minute is not None:
        lines.append(_rate("address", throttle.address_burst))
    if throttle.connections_per_address is not None:
        lines.append(f"limit_conn headrace_open_address {throttle.connections_per_address};")
    return ["", *lines] if lines else []


def _rate(name: str, burst: int) -> str:
    return f"limit_req zone=headrace_rate_{name}" + (f" burst={burst} nodelay;" if burst else ";")
