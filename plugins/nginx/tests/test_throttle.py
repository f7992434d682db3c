"""Limits per key and per address, in a real nginx."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.limits import Wall
from headrace_nginx.binary import Nginx


def statuses(front: Any, count: int, **headers: str) -> list[int]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return [front.ask(headers=named).status for _ in range(count)]


@pytest.fixture
def throttled(binary: str, running: Callable[..., Any], tmp_path: Path) -> Any:
    with running(tmp_path, binary=binary, throttle={"requests_per_minute": 1, "burst": 2}) as front:
        yield front


def test_a_key_that_asks_too_often_is_refused_and_another_is_not(throttled: Any) -> None:
    assert statuses(throttled, 5, Authorization="Bearer sk-one") == [200, 200, 200, 429, 429]
    assert statuses(throttled, 2, Authorization="Bearer sk-two") == [200, 200]
    assert statuses(throttled, 2) == [200, 200]
    refused = throttled.ask(headers={"Authorization": "Bearer sk-one"})
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.header("Retry-After") == "60"
    assert refused.header("Content-Type") == "application/json"


def test_another_spelling_of_the_same_key_is_the_same_key(throttled: Any) -> None:
    spellings = ("Bearer sk-one", "bearer sk-one", "BEARER   sk-one", "Bearer sk-one ")
    assert [throttled.ask(headers={"Authorization": each}).status for each in spellings] == [200, 200, 200, 429]


def test_a_made_up_authorization_does_not_hide_the_other_key(throttled: Any) -> None:
    found = [
        throttled.ask(headers={"X-API-Key": "sk-one", "Authorization": f"Bearer made-up-{number}"}).status
        for number in range(4)
    ]
    assert found == [200, 200, 200, 429]


def test_no_key_stands_in_the_memory_of_nginx_when_the_request_is_over(throttled: Any) -> None:
    """The zones are the only memory that outlives a request's connection by design: look at them all."""
    import sys

    if sys.platform != "linux":
        pytest.skip("needs /proc")
    assert statuses(throttled, 4, Authorization="Bearer sk-needle-in-memory")[-1] == 429
    assert b"sk-needle" not in shared_memory(throttled.master)


def shared_memory(pid: int) -> bytes:
    """Every shared anonymous mapping of a process: nginx's zones."""
    found = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            if fields[1] == "rw-s" and "/dev/zero" in line:
                begin, end = (int(text, 16) for text in fields[0].split("-"))
                memory.seek(begin)
                found += memory.read(end - begin)
    assert len(found) > 1_000_000
    return found


def test_an_address_is_limited_whatever_keys_it_tries(binary: str, running: Callable[..., Any], tmp_path: Path) -> None:
    limits = {"address_requests_per_minute": 1, "address_burst": 3}  # the readiness question takes one
    with running(tmp_path, binary=binary, throttle=limits) as front:
        found = [front.ask(headers={"Authorization": f"Bearer guess-{number}"}).status for number in range(5)]
    assert found[:2] == [200, 200] and found[-1] == 429


@pytest.mark.parametrize("limit", ["connections_per_key", "connections_per_address"])
def test_open_streams_are_limited(binary: str, running: Callable[..., Any], tmp_path: Path, limit: str) -> None:
    with running(tmp_path, binary=binary, throttle={limit: 1}) as front, front.connect() as stream:
        stream.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-one\r\n\r\n")
        assert stream.recv(10)
        assert statuses(front, 1, Authorization="Bearer sk-one") == [429]
        assert statuses(front, 1, Authorization="Bearer sk-two") == [200 if limit == "connections_per_key" else 429]


def test_without_njs_callers_are_told_apart_by_address_and_that_is_said(
    make_service: Callable[..., Any], tmp_path: Path, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(tmp_path, throttle={"requests_per_minute": 1, "burst": 1})
    found = service.nginx()
    service._found = Nginx(found.path, msgspec.structs.replace(found.platform, njs=None))
    service.install()
    assert "counts callers by address instead of by key" in caplog.text
    assert "js_import" not in service.layout.config_file.read_text()


def test_many_keys_at_once_are_counted_each_for_itself(throttled: Any) -> None:
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = statuses(throttled, 4, Authorization=f"Bearer sk-{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(map(tuple, found.values())) == {(200, 200, 200, 429)}


def test_a_second_authorization_header_does_not_hide_the_first(throttled: Any) -> None:
    """Both nginx and the core go by the first one; newer versions of nginx refuse two."""
    head = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer sk-one\r\n"
    found = [throttled.raw(head + b"Authorization: Bearer other-%d\r\n\r\n" % number).status for number in range(4)]
    assert found in ([200, 200, 200, 429], [400, 400, 400, 400])


@pytest.fixture
def walled(binary: str, make_service: Callable[..., Any], tools: Any, tmp_path: Path) -> Callable[..., Any]:
    """A running nginx with walls that plugins have asked for."""

    @contextlib.contextmanager
    def run(*walls: Wall) -> Iterator[Any]:
        service = make_service(tmp_path, binary=binary)
        service.gateway.walls += walls
        service.install()
        with tools.Core(service.gateway.core_socket) as core, tools.started(service) as child:
            yield tools.Front(service, child, core)

    return run


def posts(front: Any, count: int, path: str = "/v1/chat/completions", key: str = "sk-one") -> list[int]:
    headers = {"Authorization": f"Bearer {key}"}
    return [front.ask(path, "POST", headers=headers, body=b"{}").status for _ in range(count)]


def test_a_wall_per_key_lets_pass_twice_what_a_window_allows_and_no_flood(walled: Any) -> None:
    with walled(Wall(per="key", requests_per_minute=2)) as front:
        assert posts(front, 7) == [200] * 5 + [429] * 2
        assert posts(front, 2, key="sk-two") == [200, 200]
        refused = front.ask("/v1/chat/completions", "POST", headers={"Authorization": "Bearer sk-one"}, body=b"{}")
    assert (refused.json()["error"]["code"], refused.header("Retry-After")) == ("rate_limit_exceeded", "15")


def test_walls_stand_before_endpoints_alone(walled: Any) -> None:
    with walled(Wall(per="address", requests_per_minute=1)) as front:
        assert posts(front, 5) == [200, 200, 200, 429, 429]
        assert posts(front, 3, path="/admin/keys") == [200] * 3
        assert statuses(front, 3) == [200] * 3


def test_a_wall_per_address_counts_all_its_keys(walled: Any) -> None:
    with walled(Wall(per="address", requests_per_minute=1)) as front:
        assert [posts(front, 1, key=f"sk-{number}")[0] for number in range(5)] == [200, 200, 200, 429, 429]


def test_a_wall_against_open_requests_stands_well_behind_the_limit(walled: Any) -> None:
    with walled(Wall(per="key", concurrent=1)) as front:
        asking = [
            threading.Thread(target=lambda: found.append(posts(front, 1, path="/v1/stream")[0])) for _ in range(12)
        ]
        found: list[int] = []
        for thread in asking:
            thread.start()
        while len(found) < 2:  # ten may be open
            threading.Event().wait(0.01)
        front.core.release.set()
        for thread in asking:
            thread.join(20)
    assert sorted(found) == [200] * 10 + [429] * 2
