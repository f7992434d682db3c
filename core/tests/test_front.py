"""Which backends nginx reaches by which way, and the file in which it says so."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import front
from headrace.config import Secret, TargetTimeouts
from headrace.exchange import Target
from headrace.front import Front, Lane, lane_of, lanes_of

FRONT = Front("secret-digest", frozenset(["a b"]), 131_072, ("unix:/run/r.sock", "127.0.0.1:9000"))


def target(base_url: str = "http://gpu:8000/v1", **changes: Any) -> Target:
    return Target(name="t", provider="openai", base_url=base_url, **changes)


def lane(base_url: str = "http://gpu:8000/v1", **changes: Any) -> Lane:
    found = lane_of(target(base_url, **changes))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("base_url", "address", "host", "tls"),
    [
        ("http://gpu:8000/v1", "gpu:8000", "gpu:8000", False),
        ("http://gpu/v1", "gpu:80", "gpu", False),
        ("https://gpu/v1", "gpu:443", "gpu", True),
        ("https://gpu:8443", "gpu:8443", "gpu:8443", True),
        ("http://10.0.0.1/v1", "10.0.0.1:80", "10.0.0.1", False),
        ("http://[::1]:8000/v1", "[::1]:8000", "[::1]:8000", False),
        ("https://[2001:db8::1]/v1", "[2001:db8::1]:443", "[2001:db8::1]", True),
    ],
)
def test_a_lane_has_the_address_that_is_connected_to_and_the_host_that_is_named(
    base_url: str, address: str, host: str, tls: bool
) -> None:
    found = lane(base_url)
    assert (found.address, found.host, found.tls) == (address, host, tls)


@pytest.mark.parametrize("base_url", ["http://engine/v1", "https://engine/v1"])
def test_the_lane_of_a_unix_socket_is_plain_and_keeps_the_host(base_url: str) -> None:
    found = lane(base_url, socket="/run/engine.sock")
    assert (found.address, found.host, found.tls) == ("unix:/run/engine.sock", "engine", False)


def test_a_backend_behind_a_proxy_has_no_lane() -> None:
    assert lane_of(target(proxy=Secret("http://proxy:3128"))) is None
    assert lanes_of([target(proxy=Secret("http://proxy:3128"))]) == {}


def test_nginx_waits_for_the_longer_of_first_byte_and_idle() -> None:
    assert lane(timeouts=TargetTimeouts(first_byte=7.0, idle=5.0)).read == 7.0
    assert lane(timeouts=TargetTimeouts(first_byte=5.0, idle=7.0)).read == 7.0


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"api_key": Secret("k")},
        {"headers": {"X-A": Secret("b")}},
        {"weight": 3},
        {"stream_usage": False},
        {"base_url": "http://gpu:8000/another/path"},
    ],
)
def test_what_is_said_request_by_request_makes_no_other_lane(changes: dict[str, Any]) -> None:
    assert lane(**changes).key == lane().key


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://gpu:8001/v1"},
        {"base_url": "http://gpu2:8000/v1"},
        {"base_url": "https://gpu:8000/v1"},
        {"socket": "/run/engine.sock"},
        {"verify": False},
        {"verify": "/etc/ca.pem"},
        {"max_connections": 5},
        {"timeouts": TargetTimeouts(connect=1.0)},
        {"timeouts": TargetTimeouts(first_byte=601.0)},
        {"timeouts": TargetTimeouts(idle=601.0)},
        {"timeouts": TargetTimeouts(keep_alive=1.0)},
    ],
)
def test_what_is_rendered_makes_another_lane(changes: dict[str, Any]) -> None:
    assert lane(**changes).key != lane().key


def test_backends_that_differ_in_their_address_alone_share_a_location() -> None:
    first, second = lane(), lane("http://gpu2:8000/v1")
    assert first.location == second.location
    assert first.group != second.group


def test_the_default_port_and_the_same_port_said_are_one_group() -> None:
    assert lane("http://gpu/v1").group == lane("http://gpu:80/v1").group


def test_names_are_the_same_in_every_process() -> None:
    fixed = Lane(False, "gpu:8000", "gpu:8000", verify=True, connect=1.0, read=2.0, keep_alive=3.0, max_connections=4)
    assert fixed.key == "headrace_c546493bcfdb @headrace_43aabac428e1"


def test_lanes_are_found_by_their_targets_names() -> None:
    first = target()
    second = msgspec.structs.replace(target("http://b"), name="u")
    assert lanes_of([first, second]) == {"t": lane_of(first), "u": lane_of(second)}


def test_a_front_is_read_as_it_was_written(tmp_path: Path) -> None:
    front.write(tmp_path / "front.json", FRONT)
    assert front.read(tmp_path / "front.json") == FRONT


def test_nobody_but_the_owner_may_read_the_secret(tmp_path: Path) -> None:
    front.write(tmp_path / "front.json", FRONT)
    assert stat.S_IMODE((tmp_path / "front.json").stat().st_mode) == 0o600


def test_a_front_replaces_another_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text("old")
    path.chmod(0o644)
    (tmp_path / ".front.json.new").write_text("left behind")
    front.write(path, FRONT)
    assert front.read(path) == FRONT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"mark":"m"}',
        b'{"mark":"\xff"}',
        b'{"mark":"m","lanes":5,"edit_bytes":1,"reports":[]}',
    ],
)
def test_a_garbled_front_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "front.json").write_bytes(content)
    assert front.read(tmp_path / "front.json") is None


def test_no_front_is_none(tmp_path: Path) -> None:
    assert front.read(tmp_path / "front.json") is None
    assert front.read(tmp_path) is None


def test_what_a_newer_nginx_plugin_adds_to_the_file_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(FRONT), "more": 1}))
    assert front.read(path) == FRONT
