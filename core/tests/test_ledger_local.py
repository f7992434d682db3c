"""The ledger that the workers of one gateway share: what is reserved, by whomever, is never more than the limit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.errors import HeadraceError, Unavailable
from headrace.ledger import Limit, Refusal
from headrace.ledger.local import LocalHold, LocalLedger
from headrace.ledger.sums import SEGMENT_BYTES

DAY = Limit("t:day", "window", 100, 86_400.0)
MONTH = Limit("t:month", "sum", 150, ends=1e12)
OPEN = Limit("t:open", "open", 4)
ALL = (DAY, MONTH, OPEN)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=[False, True], ids=["shared", "alone"])
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LocalLedger]:
    """One that others write, too, and one that counts in memory."""
    ledger = LocalLedger(tmp_path / "ledger")
    ledger.open(alone=request.param)
    yield ledger
    ledger.close()


def used(ledger: LocalLedger, *limits: Limit) -> list[int]:
    return [level.used for level in asyncio.run(ledger.levels(limits))]


def taken(ledger: LocalLedger, *amounts: int) -> LocalHold:
    hold = ledger.take(ALL, amounts)
    assert isinstance(hold, LocalHold)
    return hold


def test_a_request_takes_all_it_needs_and_gives_back_what_it_did_not_use(ledger: LocalLedger) -> None:
    hold = taken(ledger, 60, 60, 1)
    assert used(ledger, *ALL) == [60, 60, 1]
    hold.settle((20, 25, 1))
    assert used(ledger, *ALL) == [20, 25, 0]


def test_a_request_that_does_not_fit_everywhere_takes_nothing(ledger: LocalLedger) -> None:
    taken(ledger, 10, 140, 1)
    refusal = ledger.take(ALL, (10, 20, 1))
    assert isinstance(refusal, Refusal)
    assert refusal.level.limit == MONTH
    assert [level.used for level in refusal.levels] == [10, 140, 1]
    assert used(ledger, *ALL) == [10, 140, 1]


def test_a_second_settlement_changes_nothing(ledger: LocalLedger) -> None:
    hold = taken(ledger, 50, 50, 1)
    hold.settle((10, 10, 1))
    hold.settle((0, 0, 1))
    assert used(ledger, *ALL) == [10, 10, 0]


def test_nobody_gets_back_more_than_was_reserved(ledger: LocalLedger) -> None:
    taken(ledger, 20, 20, 1).settle((-5, -(2**70), 1))
    assert used(ledger, *ALL) == [0, 0, 0]
    taken(ledger, 20, 20, 1).settle((25, 2**70, 1))
    assert used(ledger, *ALL) == [25, 2**53, 0]
    assert isinstance(ledger.take((DAY,), (1,)), LocalHold)


def test_what_was_settled_just_before_a_refusal_counts_once(ledger: LocalLedger) -> None:
    async def play() -> None:
        hold = await ledger.reserve(ALL, (100, 100, 1))
        assert isinstance(hold, LocalHold)
        hold.settle((90, 90, 1))
        assert isinstance(await ledger.reserve(ALL, (20, 20, 1)), Refusal)
        assert isinstance(await ledger.reserve(ALL, (20, 20, 1)), Refusal)
        assert [level.used for level in await ledger.levels(ALL)] == [90, 90, 0]

    asyncio.run(play())


def test_what_was_settled_is_written_soon_though_nobody_asks(ledger: LocalLedger, tmp_path: Path) -> None:
    async def play() -> None:
        hold = await ledger.reserve(ALL, (100, 100, 1))
        assert isinstance(hold, LocalHold)
        hold.settle((0, 0, 1))
        while ledger._due:
            await asyncio.sleep(0.001)
        assert [level.used for level in await ledger.levels(ALL)] == [0, 0, 0]

    asyncio.run(asyncio.wait_for(play(), 5))


def test_windows_move_on_and_forget_whoever_counts(tmp_path: Path) -> None:
    minute = Limit("t:minute", "window", 10, 60.0)
    for alone in (False, True):
        clock = Clock()
        ledger = LocalLedger(tmp_path / str(alone), clock=clock)
        ledger.open(alone=alone)
        hold = ledger.take((minute,), (10,))
        assert isinstance(hold, LocalHold)
        clock.now += 30
        refusal = ledger.take((minute,), (1,))
        assert isinstance(refusal, Refusal) and 30 < refusal.wait <= 32
        hold.settle((4,))
        assert used(ledger, minute) == [4]
        asyncio.run(ledger.sweep())
        asyncio.run(ledger.sweep())
        assert used(ledger, minute) == [4]
        clock.now += 32
        assert used(ledger, minute) == [0]
        ledger.close()


def test_what_a_sum_has_reserved_survives_kill_9_at_once(tmp_path: Path) -> None:
    """A worker alone counts in memory; what the windows of the last moment have is lost."""
    code = f"""
import os, signal
from pathlib import Path
from headrace.ledger import Limit
from headrace.ledger.local import LocalLedger
ledger = LocalLedger(Path({str(tmp_path / "ledger")!r}))
ledger.open(alone=True)
many = [Limit(f"t:sum-{{number}}", "sum", 10**9, ends=1e12) for number in range(3000)]
for number, limit in enumerate(many):
    ledger.take((limit,), (number,))
ledger.take((Limit("t:month", "sum", 150, ends=1e12),), (70,)).settle((25,))
ledger.take((Limit("t:month", "sum", 150, ends=1e12),), (40,))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    for _ in range(2):  # whoever opens it next takes it over, and the one after has it as well
        ledger = LocalLedger(tmp_path / "ledger")
        ledger.open()
        assert used(ledger, MONTH) == [65]
        assert used(ledger, *(Limit(f"t:sum-{number}", "sum", 1) for number in (0, 1, 2999))) == [0, 1, 2999]
        ledger.close()


def test_what_cannot_be_written_yet_counts_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One worker, which counts in memory."""

    async def play() -> None:
        ledger = LocalLedger(tmp_path / "ledger")
        ledger.open(alone=True)
        hold = await ledger.reserve((MONTH, OPEN), (20, 1))
        alone = ledger._alone
        assert alone is not None and isinstance(hold, LocalHold)
        true_env, alone._env = alone._env, BrokenDisk()  # type: ignore[assignment]
        hold.settle((5, 1))
        alone.write()
        assert "no space left" in caplog.text
        await ledger.reserve((MONTH, OPEN), (10, 1))
        alone._env = true_env
        assert [level.used for level in await ledger.levels((MONTH, OPEN))] == [15, 1]
        ledger.close()
        ledger.open()
        assert [level.used for level in await ledger.levels((MONTH, OPEN))] == [15, 1]
        ledger.close()

    asyncio.run(play())


def test_a_sum_that_no_room_is_left_for_on_the_disk_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = LocalLedger(tmp_path / "ledger")
    ledger.open(alone=True)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Unavailable):
        ledger.take((DAY, MONTH), (10, 10))
    monkeypatch.undo()
    assert used(ledger, DAY, MONTH) == [0, 0]
    ledger.close()


def test_sums_that_nobody_asks_for_take_no_room(tmp_path: Path) -> None:
    ledger = LocalLedger(tmp_path / "ledger")
    ledger.open(alone=True)
    for begin in range(0, 5000, 500):
        for number in range(begin, begin + 500):
            ledger.take((Limit(f"t:sum-{number}", "sum", 10, ends=1e12),), (1,))
        for _ in range(2):
            asyncio.run(ledger.sweep())
    assert (tmp_path / "ledger.sums").stat().st_size <= 2 * SEGMENT_BYTES
    assert used(ledger, *(Limit(f"t:sum-{number}", "sum", 10) for number in (0, 4999))) == [1, 1]
    ledger.close()


def test_two_gateways_do_not_count_alone_in_one_file(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from headrace.ledger.local import LocalLedger
LocalLedger(Path({str(tmp_path / "ledger")!r})).open(alone=True)
"""
    ledger = LocalLedger(tmp_path / "ledger")
    ledger.open(alone=True)
    refused = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "HeadraceError" in refused.stderr and "state_dir" in refused.stderr
    ledger.close()
    subprocess.run([sys.executable, "-c", code], check=True)


class BrokenDisk:
    """An environment that nothing can be written into."""

    def begin(self, write: bool = False) -> Any:
        if write:
            raise lmdb.DiskError("no space left")
        return contextlib.nullcontext({})


def test_limits_with_long_names_are_told_apart(ledger: LocalLedger) -> None:
    one, other = (Limit("t:" + "x" * 1000 + end, "sum", 10) for end in "ab")
    ledger.take((one,), (7,))
    assert used(ledger, one, other) == [7, 0]


def test_counts_survive_the_end_of_the_gateway(tmp_path: Path) -> None:
    for expected in (10, 20, 30):
        ledger = LocalLedger(tmp_path / "ledger")
        ledger.open()
        ledger.take((MONTH,), (10,))
        assert used(ledger, MONTH) == [expected]
        ledger.close()


def test_what_a_dead_worker_held_open_is_free_again_and_what_others_hold_is_not(tmp_path: Path) -> None:
    async def play() -> None:
        for worker in (0, 1):
            ledger = LocalLedger(tmp_path / "ledger", worker, workers=2)
            async with ledger.running():
                ledger.take((OPEN,), (1,))
        async with LocalLedger(tmp_path / "ledger", 1, workers=2).running() as _:
            pass
        ledger = LocalLedger(tmp_path / "ledger", 1, workers=2)
        async with ledger.reading():
            assert (await ledger.levels((OPEN,)))[0].used == 1
        alone = LocalLedger(tmp_path / "ledger", 0, workers=1)
        async with alone.running():
            assert (await alone.levels((OPEN,)))[0].used == 0

    asyncio.run(play())


def test_looking_does_not_disturb_a_gateway_that_runs(tmp_path: Path) -> None:
    async def play() -> None:
        ledger = LocalLedger(tmp_path / "ledger")
        async with ledger.running():
            ledger.take((OPEN,), (3,))
        async with ledger.reading():
            assert (await ledger.levels((OPEN,)))[0].used == 3

    asyncio.run(play())


def test_what_is_over_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    ledger = LocalLedger(tmp_path / "ledger", clock=clock)
    ledger.open()
    for number in range(1000):
        ledger.take(
            (Limit(f"t:{number}", "window", 5, 60.0), Limit(f"t:{number}", "sum", 5, ends=clock.now + 100)), (1, 1)
        )
        ledger.take((Limit(f"t:{number}", "open", 5),), (1,))
    assert len(ledger) == 3000
    clock.now += 62
    asyncio.run(ledger.sweep())
    assert len(ledger) == 2000
    clock.now += 100
    asyncio.run(ledger.sweep())
    assert len(ledger) == 1000
    assert used(ledger, Limit("t:7", "open", 5)) == [1]
    ledger.close()


def test_what_is_counted_can_be_listed_by_the_beginning_of_its_name(tmp_path: Path) -> None:
    clock = Clock()
    ledger = LocalLedger(tmp_path / "ledger", clock=clock)
    ledger.open()
    for name, ends in (("a:1", 1e12), ("a:2", clock.now + 5), ("b:1", 1e12)):
        ledger.take((Limit(name, "sum", 50, ends=ends), Limit(name, "window", 50, 60.0)), (7, 1))
    assert asyncio.run(ledger.scan("sum", "a:")) == [("a:1", 7), ("a:2", 7)]
    clock.now += 10
    assert asyncio.run(ledger.scan("sum", "a:")) == [("a:1", 7)]
    assert asyncio.run(ledger.scan("window", "")) == [("a:1", 1), ("a:2", 1), ("b:1", 1)]
    ledger.close()


def test_a_file_that_is_something_else_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"not a database" * 1000)
    with pytest.raises(HeadraceError, match="Move the file away"):
        LocalLedger(tmp_path / "ledger").open()


def test_after_a_power_cut_counts_are_those_of_the_last_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, boots = tmp_path / "ledger", tmp_path / "boot_id"
    monkeypatch.setattr("headrace.ledger.file.BOOT_ID", boots)
    boots.write_text("first")

    async def play() -> None:
        ledger = LocalLedger(path)
        async with ledger.running():
            ledger.take((MONTH,), (70,))  # a copy is put on the disk when the gateway ends
        ledger.open()
        ledger.take((MONTH,), (30,))
        ledger.close()

    asyncio.run(play())
    ledger = LocalLedger(path)
    ledger.open()
    assert used(ledger, MONTH) == [100]  # the machine still runs
    ledger.close()
    path.write_bytes(b"\0" * path.stat().st_size)  # as a disk may leave it
    boots.write_text("second")
    ledger.open()
    assert used(ledger, MONTH) == [70]
    ledger.close()


def test_a_copy_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    async def play() -> None:
        async with LocalLedger(tmp_path / "ledger").running() as _:
            pass

    asyncio.run(play())
    modes = {each.name: each.stat().st_mode & 0o077 for each in tmp_path.iterdir() if each.name != "ledger.boot-lock"}
    assert {"ledger", "ledger.saved"} <= set(modes)
    assert modes["ledger"] == modes["ledger.saved"] == 0


def test_without_an_open_file_nothing_is_granted(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        LocalLedger(tmp_path / "ledger").take(ALL, (1, 1, 1))


class Interleavings(RuleBasedStateMachine):
    """Requests begin, end and are given up in any order, beside the passing of time: nothing is overspent or leaks."""

    alone = False

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.path = Path(os.environ["HEADRACE_TEST_DIR"]) / os.urandom(8).hex()
        self.ledger = LocalLedger(self.path, clock=self.clock)
        self.ledger.open(alone=self.alone)
        self.spent = 0
        self.held: dict[LocalHold, int] = {}

    @rule(target=holds, amount=st.integers(1, 60))
    def reserve(self, amount: int) -> LocalHold | None:
        fits = self.spent + sum(self.held.values()) + amount <= MONTH.most and len(self.held) < OPEN.most
        hold = self.ledger.take((MONTH, OPEN), (amount, 1))
        assert isinstance(hold, LocalHold) is fits
        if isinstance(hold, Refusal):
            return None
        self.held[hold] = amount
        return hold

    @rule(hold=consumes(holds), part=st.floats(0, 1))
    def settle(self, hold: LocalHold | None, part: float) -> None:
        if hold is not None:
            actual = int(self.held.pop(hold) * part)
            hold.settle((actual, 1))
            self.spent += actual

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        asyncio.run(self.ledger.sweep())

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger.open(alone=self.alone)

    @invariant()
    def counts_are_right(self) -> None:
        assert used(self.ledger, MONTH, OPEN) == [self.spent + sum(self.held.values()), len(self.held)]

    def teardown(self) -> None:
        self.ledger.close()


class InterleavingsAlone(Interleavings):
    alone = True


@pytest.mark.parametrize("machine", [Interleavings, InterleavingsAlone])
def test_no_interleaving_overspends_or_leaks(
    machine: type[Interleavings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_TEST_DIR", str(tmp_path))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]),
    )


WORKER = """
import sys
from pathlib import Path
from headrace.ledger import Limit
from headrace.ledger.local import LocalHold, LocalLedger
from headrace.ledger.sums import SEGMENT_BYTES
ledger = LocalLedger(Path(sys.argv[1]), int(sys.argv[2]), workers=4)
ledger.open()
limits = (Limit("t:all", "sum", int(sys.argv[3])), Limit("t:open", "open", 3))
print("ready", flush=True)
sys.stdin.readline()
granted = 0
while True:
    hold = ledger.take(limits, (10, 1))
    if isinstance(hold, LocalHold):
        hold.settle((7, 1))
        granted += 7
    elif hold.level.limit.kind == "sum":
        break
print(granted, flush=True)
ledger.close()
"""


def started(path: Path, worker: int, most: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(worker), str(most)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_four_processes_together_never_overspend_and_use_what_there_is(tmp_path: Path) -> None:
    most = 20_000
    processes = [started(tmp_path / "ledger", worker, most) for worker in range(4)]
    for process in processes:
        go(process)
    granted = sum(int(process.communicate(timeout=60)[0]) for process in processes)
    assert most * 0.95 <= granted <= most
    ledger = LocalLedger(tmp_path / "ledger")
    ledger.open()
    assert used(ledger, Limit("t:all", "sum", most), Limit("t:open", "open", 3)) == [granted, 0]
    ledger.close()


def test_processes_that_are_killed_leave_counts_that_are_whole(tmp_path: Path) -> None:
    """Whatever they were doing: what they had reserved counts, the others go on, and what was open is found."""
    most = 10**9
    for _ in range(5):
        processes = [started(tmp_path / "ledger", worker, most) for worker in range(3)]
        for process in processes:
            go(process)
        ledger = LocalLedger(tmp_path / "ledger", 3, workers=4)
        ledger.open()
        before = used(ledger, Limit("t:all", "sum", most))[0]
        while used(ledger, Limit("t:all", "sum", most))[0] < before + 500:
            pass
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=10)
        after, still_open = used(ledger, Limit("t:all", "sum", most), Limit("t:open", "open", 3))
        assert after >= before + 500
        assert still_open <= 3
        assert isinstance(ledger.take((Limit("t:all", "sum", most),), (1,)), LocalHold)
        ledger.close()
        for worker in range(3):
            dead = LocalLedger(tmp_path / "ledger", worker, workers=4)
            dead.open()
            dead.release_dead()
            assert worker < 2 or used(dead, Limit("t:open", "open", 3)) == [0]
            dead.close()
