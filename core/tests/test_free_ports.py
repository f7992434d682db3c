"""Ports for servers that tests start: nobody else comes to have them before the server is there."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from headrace import testing
from headrace.testing import PORTS, free_port


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    testing._ports.cache_clear()
    yield
    testing._ports.cache_clear()


def test_no_port_is_given_twice_and_none_that_connections_get() -> None:
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == 500
    assert set(given) <= set(PORTS)


def test_processes_of_one_run_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    shares = []
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        testing._ports.cache_clear()
        shares.append({next(testing._ports()) for _ in PORTS})
    assert all(not one & other for one, other in itertools.combinations(shares, 2))
    assert set.union(*shares) == set(PORTS)


def test_a_taken_port_is_left_out_and_it_is_said_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        monkeypatch.setattr(testing, "PORTS", range(min(busy, free), max(busy, free) + 1, abs(busy - free)))
        testing._ports.cache_clear()
        assert [free_port() for _ in range(3)] == [free] * 3
        monkeypatch.setattr(testing, "PORTS", range(busy, busy + 1))
        testing._ports.cache_clear()
        with pytest.raises(OSError, match="no free port"):
            free_port()
