"""The server fails in every way we know, under load: nobody waits for long, nothing is counted twice or lost, and all
is well again by itself.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import Unavailable
from headrace.ledger import Limit
from headrace.ledger.local import LocalHold
from headrace_redis.ledger import RedisHold, RedisLedger

Make = Callable[..., Any]
TOTAL = Limit("t:sum", "sum", 10**9)
OPEN = Limit("t:open", "open", 10**6)
LONGEST = 3.0
"""Seconds: a deadline of one, and a machine that is busy."""


def killed(server: Any, proxy: Any) -> None:
    server.kill()


def started(server: Any, proxy: Any) -> None:
    server.start()


def stopped(server: Any, proxy: Any) -> None:
    server.signal(signal.SIGSTOP)


def continued(server: Any, proxy: Any) -> None:
    server.signal(signal.SIGCONT)


def slow(server: Any, proxy: Any) -> None:
    proxy.delay = 0.7


def fast(server: Any, proxy: Any) -> None:
    proxy.delay = 0.0


def silent(server: Any, proxy: Any) -> None:
    """As if the cable had been pulled: what is sent is taken, and nothing comes back."""
    proxy.deaf = True


def heard(server: Any, proxy: Any) -> None:
    proxy.deaf = False


def refused(server: Any, proxy: Any) -> None:
    proxy.refuse = True
    proxy.cut()


def welcome(server: Any, proxy: Any) -> None:
    proxy.refuse = False


def cut(server: Any, proxy: Any) -> None:
    proxy.cut()


def nothing(server: Any, proxy: Any) -> None:
    pass


def another_protocol(server: Any, proxy: Any) -> None:
    proxy.garbage = b"HTTP/1.1 400 Bad Request\r\n\r\n"


def half_an_answer(server: Any, proxy: Any) -> None:
    proxy.garbage = b"$5\r\nhello\r\n"


def another_password(server: Any, proxy: Any) -> None:
    server.call("CONFIG", "SET", "requirepass", "another")
    proxy.cut()


def no_password(server: Any, proxy: Any) -> None:
    server.call("CONFIG", "SET", "requirepass", "")


def read_only(server: Any, proxy: Any) -> None:
    server.call("REPLICAOF", "127.0.0.1", "1")


def writable(server: Any, proxy: Any) -> None:
    server.call("REPLICAOF", "NO", "ONE")


def out_of_memory(server: Any, proxy: Any) -> None:
    server.call("CONFIG", "SET", "maxmemory", "1")


def memory(server: Any, proxy: Any) -> None:
    server.call("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize(
    ("broken", "mended", "why"),
    [
        pytest.param(killed, started, "", id="killed"),
        pytest.param(stopped, continued, "no answer within 500 ms", id="stopped"),
        pytest.param(slow, fast, "no answer within 500 ms", id="slow"),
        pytest.param(silent, heard, "no answer within 500 ms", id="silent"),
        pytest.param(refused, welcome, "", id="refused"),
        pytest.param(cut, nothing, "", id="cut"),
        pytest.param(another_protocol, nothing, "no answer of Redis", id="another protocol"),
        pytest.param(half_an_answer, nothing, "cannot be understood", id="half an answer"),
        pytest.param(another_password, no_password, "", id="another password"),
        pytest.param(read_only, writable, "READONLY", id="read-only"),
        pytest.param(out_of_memory, memory, "OOM", id="out of memory"),
    ],
)
async def test_a_failure_is_survived_and_everything_counted_once(
    broken: Callable[[Any, Any], None],
    mended: Callable[[Any, Any], None],
    why: str,
    start_server: Make,
    proxy_to: Make,
    ledger_at: Make,
    load: Make,
    until: Make,
    said: Callable[[], list[str]],
) -> None:
    server = start_server("--appendonly", "yes", "--appendfsync", "always")
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        async with load(ledger) as running:
            await until(lambda: running.granted > 20)
            broken(server, proxy)
            await until(lambda: said())
            before = running.granted
            await until(lambda: running.granted > before + 20)
            mended(server, proxy)
            await until(lambda: ledger.state == "ok")
            before = running.granted
            await until(lambda: running.granted > before + 20)
        assert running.errors == []
        assert running.longest < LONGEST
        await until(lambda: counted(server) + local(ledger) == 7 * running.granted)
        assert (await ledger.levels((OPEN,)))[0].used == 0
    failed, answers = said()
    assert failed.endswith("limits are counted by this gateway alone")
    assert why in failed
    assert answers.endswith("answers again: limits are counted together")


def counted(server: Any) -> int:
    return int(server.only_value("*s:t:sum")[b"used"])


def local(ledger: RedisLedger) -> int:
    coroutine: Any = ledger._elsewhere.levels((TOTAL,))
    try:
        coroutine.send(None)
    except StopIteration as done:
        used: int = done.value[0].used
        return used
    raise AssertionError("it has waited")


@pytest.mark.parametrize("command", ["FLUSHALL", "SCRIPT FLUSH"])
async def test_nobody_notices_when_the_server_forgets(
    command: str, server: Any, ledger_at: Make, load: Make, until: Make, said: Callable[[], list[str]]
) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        async with load(ledger) as running:
            for _ in range(3):
                server.call(*command.split())
                before = running.granted
                await until(lambda at=before: running.granted > at + 20)
        assert running.errors == []
        assert local(ledger) == 0
        await until(lambda: server.call("KEYS", "*t:open") == [])
        assert counted(server) <= 7 * running.granted
    assert said() == []


@pytest.mark.parametrize(("mode", "says"), [("local", "alone"), ("open", "nothing is limited"), ("closed", "refused")])
async def test_a_server_that_is_not_there_at_the_start_is_found_later(
    mode: str, says: str, own_server: Any, ledger_at: Make, until: Make, said: Callable[[], list[str]]
) -> None:
    own_server.kill()
    async with ledger_at(f"unix://{own_server.path}", on_failure=mode) as ledger:
        assert ledger.state.startswith("failing since 20")
        assert says in said()[0]
        own_server.start()
        await until(lambda: ledger.state == "ok")
        assert isinstance(await ledger.reserve((TOTAL,), (1,)), RedisHold)
    assert len(said()) == 2


async def test_closed_means_that_requests_are_refused_with_when_to_ask_again(tmp_path: Any, ledger_at: Make) -> None:
    async with ledger_at(f"unix://{tmp_path}/nobody", on_failure="closed") as ledger:
        for question in (ledger.reserve((TOTAL,), (1,)), ledger.levels((TOTAL,))):
            with pytest.raises(Unavailable) as caught:
                await question
            assert caught.value.headers["Retry-After"] == "1"


async def test_open_means_that_everything_is_granted_and_nothing_counted(tmp_path: Any, ledger_at: Make) -> None:
    nothing_left = Limit("t:none", "sum", 0)
    async with ledger_at(f"unix://{tmp_path}/nobody", on_failure="open") as ledger:
        hold = await ledger.reserve((nothing_left,), (100,))
        assert list(hold.used) == [0]
        hold.settle((100,))
        assert [level.used for level in await ledger.levels((nothing_left,))] == [0]


async def test_local_means_that_this_gateway_limits_by_itself(tmp_path: Any, ledger_at: Make) -> None:
    few = Limit("t:few", "sum", 10)
    async with ledger_at(f"unix://{tmp_path}/nobody") as ledger:
        assert isinstance(await ledger.reserve((few,), (10,)), LocalHold)
        assert not isinstance(await ledger.reserve((few,), (1,)), LocalHold)


async def test_while_it_has_failed_no_request_waits_and_none_looks_for_it(
    own_server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(own_server.path) as proxy, ledger_at(proxy.url, probe_seconds=0.2) as ledger:
        proxy.refuse = True
        proxy.cut()
        await until(lambda: ledger.state != "ok")
        before, began = proxy.connections, time.monotonic()
        while proxy.connections < before + 5:
            question = ledger.reserve((TOTAL,), (1,))
            with pytest.raises(StopIteration):
                question.send(None)
            await asyncio.sleep(0.001)
        assert time.monotonic() - began > 4 * 0.1  # half of probe_seconds, at the least


async def test_a_connection_that_was_lost_unnoticed_is_found_without_a_request(
    own_server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(own_server.path) as proxy, ledger_at(proxy.url) as ledger:
        proxy.deaf = True
        ledger._batches.renew()
        await until(lambda: ledger.state != "ok")
