"""Who is in front of the core: which nginx is believed, and where the core listens for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace import front as wire
from headrace import reporting as module
from headrace.dialects import OPENAI_ENDPOINTS
from headrace.exchange import Exchange, Target
from headrace.offload import GivenBack
from headrace.reporting import Reporting, is_key
from headrace.verdict import Failure

A = "a" * 32


def front_at(directory: Path, mark: str = "s-d") -> Path:
    reports = (f"unix:{directory}/r0.sock", f"unix:{directory}/r1.sock")
    wire.write(directory / wire.FRONT_FILE, wire.Front(mark, frozenset(), 1, reports))
    return directory / wire.FRONT_FILE


@pytest.fixture
async def reporting(tmp_path: Path) -> Any:
    """A Reporting by itself, with a front that the disk tells of."""
    front_at(tmp_path)
    made = Reporting(tmp_path, 0)
    made.open()
    yield made
    made.close()


async def test_a_worker_that_shows_the_mark_has_a_seat_and_keeps_it(reporting: Reporting) -> None:
    seat = reporting.seat(b"s-d 1")
    assert seat is not None
    assert (seat.pid, seat.proven, seat.front.mark) == (1, False, "s-d")
    assert reporting.seat(b"s-d 1") is seat


async def test_each_worker_has_a_seat_of_its_own(reporting: Reporting) -> None:
    assert reporting.seat(b"s-d 1") is not reporting.seat(b"s-d 2")


@pytest.mark.parametrize("mark", [b"", b"s-d", b"s-d ", b"s-d x", b"s-d -1", b"s-d 1 ", b"s-e 1", b"S-D 1", b"\xff 1"])
async def test_any_other_mark_has_none(reporting: Reporting, mark: bytes) -> None:
    assert reporting.seat(mark) is None


async def test_a_process_id_that_no_system_has_is_one_that_is_not_seen(reporting: Reporting) -> None:
    seat = reporting.seat(b"s-d 99999999999999999999")
    assert seat is not None
    assert (seat.visible, seat.gone) == (False, False)


async def test_the_disk_is_asked_about_unknown_marks_once_a_second(
    reporting: Reporting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reporting.seat(b"new 1") is None
    front_at(tmp_path, "new")
    assert reporting.seat(b"new 1") is None
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    assert reporting.seat(b"new 1") is not None


async def test_workers_of_an_older_nginx_keep_their_seats(
    reporting: Reporting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = reporting.seat(b"s-d 1")
    front_at(tmp_path, "new")
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    assert reporting.seat(b"new 1") is not None
    assert reporting.seat(b"s-d 1") is old


async def test_seats_do_not_grow_without_end(reporting: Reporting) -> None:
    first = reporting.seat(b"s-d 1")
    for pid in range(2, module.SEATS_KEPT + 2):
        assert reporting.seat(b"s-d %d" % pid) is not None
    assert reporting.seat(b"s-d 1") is not first


async def test_a_worker_of_the_core_for_which_nginx_has_no_address_has_no_seats(tmp_path: Path) -> None:
    front_at(tmp_path)
    third = Reporting(tmp_path, 2)
    third.open()
    assert third.seat(b"s-d 1") is None
    third.close()


async def test_each_worker_of_the_core_listens_at_its_own_address(tmp_path: Path) -> None:
    front_at(tmp_path)
    workers = [Reporting(tmp_path, number) for number in range(2)]
    for each in workers:
        each.open()
        assert each.seat(b"s-d 1") is not None
    assert {each.name for each in tmp_path.glob("*.sock")} == {"r0.sock", "r1.sock"}
    for each in workers:
        each.close()


async def test_an_address_that_cannot_be_had_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire.write(tmp_path / wire.FRONT_FILE, wire.Front("s-d", frozenset(), 1, (f"unix:{tmp_path}/none/r.sock",)))
    made = Reporting(tmp_path, 0)
    made.open()
    assert [made.seat(b"s-d 1"), made.seat(b"s-d 1"), made.seat(b"s-d 2")] == [None] * 3
    made.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("answers are delivered by the core: cannot listen for reports on unix:")


async def test_closing_leaves_no_socket_and_no_timer(tmp_path: Path) -> None:
    front_at(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Reporting(tmp_path, 0)
    made.open()
    assert made.seat(b"s-d 1") is not None
    made.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    made.close()  # and may be called again


async def test_a_report_socket_is_for_the_owner_alone(reporting: Reporting, tmp_path: Path) -> None:
    reporting.seat(b"s-d 1")
    assert (tmp_path / "r0.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("text", "expected"), [(A, True), ("0123456789abcdef" * 2, True), (None, False), ("", False)])
def test_what_nginx_calls_a_request(text: str | None, expected: bool) -> None:
    assert is_key(text) is expected


@pytest.mark.parametrize("text", ["a" * 31, "a" * 33, "A" * 32, "g" * 32, A + "\n", "٣" * 32])
def test_what_nginx_would_not_call_a_request(text: str) -> None:
    assert not is_key(text)


async def test_a_request_of_which_the_end_is_known_cannot_be_given_back(reporting: Reporting) -> None:
    scope = {"headers": [], "method": "POST", "path": "/v1/embeddings"}
    exchange = Exchange(id="x", endpoint=OPENAI_ENDPOINTS["/v1/embeddings"], scope=scope)
    target = Target(name="t", provider="openai", base_url="http://gpu")
    pending = reporting.expect(exchange, A, target, 1)
    given = GivenBack(None, Failure(502, connected=False, answered=False))  # type: ignore[arg-type]
    assert reporting.give_back(A, given)
    assert not reporting.give_back(A, given)
    assert pending.future.result() is given


async def test_complaints_do_not_grow_without_end(reporting: Reporting, tmp_path: Path) -> None:
    seat = reporting.seat(b"s-d 1")
    assert seat is not None
    for number in range(module.COMPLAINTS_KEPT + 10):
        reporting._hear(b"2026/11/21 10:00:00 [error] 1#1: *%d it broke while reading upstream, client" % number)
    assert len(seat.broken) == module.COMPLAINTS_KEPT
    assert 0 not in seat.broken
