"""Where metrics are served, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from headrace.errors import PluginError
from headrace.testing import free_port, serve
from headrace_metrics.serving import Listener


@pytest.fixture
def port() -> int:
    return free_port()


def listener(port: int, lock: Path, says: str = "one") -> Listener:
    async def answer(request: Any) -> PlainTextResponse:
        return PlainTextResponse(says)

    return Listener(Starlette(routes=[Route("/metrics", answer)]), f"127.0.0.1:{port}", lock)


async def asked(port: int) -> str:
    """What is answered there, over a connection of its own."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


@pytest.mark.parametrize(("caller", "status"), [("prometheus", 200), ("root", 200), ("ada", 403), ("", 401)])
async def test_the_gateways_own_path_needs_the_role(measured: Any, caller: str, status: int) -> None:
    async with measured() as gateway:
        answer = await gateway.client.get("/metrics", headers={"x-api-key": caller})
    assert answer.status_code == status


async def test_the_path_can_be_left_out(measured: Any, port: int) -> None:
    async with measured({"route": False, "listen": f"127.0.0.1:{port}"}) as gateway:
        answer = await gateway.client.get("/metrics", headers={"x-api-key": "root"})
        assert answer.status_code == 404
        assert "headrace_build_info" in await asked(port)


async def test_an_address_of_its_own_says_the_same_to_everybody(measured: Any, port: int) -> None:
    async with measured({"listen": f"127.0.0.1:{port}"}) as gateway:
        await gateway.ask()
        assert 'headrace_requests_total{delivery="inline",model="test",status="200",target="fake"} 1.0' in await asked(
            port
        )


async def test_an_address_of_its_own_has_nothing_but_metrics(measured: Any, port: int) -> None:
    async with measured({"listen": f"127.0.0.1:{port}"}), httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/v1/models")).status_code == 404
        assert (await client.post(f"http://127.0.0.1:{port}/metrics")).status_code == 405


async def test_a_taken_address_ends_the_start_with_its_name(measured: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PluginError, match=f"cannot listen on {taken} .*set another address"):
            async with measured({"listen": taken}):
                pass


async def test_the_address_of_another_gateway_is_a_taken_one(measured: Any, port: int) -> None:
    async with measured({"listen": f"127.0.0.1:{port}"}):
        with pytest.raises(PluginError, match="cannot listen"):
            async with measured({"listen": f"127.0.0.1:{port}"}):
                pass


@contextlib.asynccontextmanager
async def standing_by(lock: Path) -> AsyncIterator[None]:
    """As if another process held the lock."""
    with lock.open("w") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1 127.0.0.1:1")
        file.flush()
        yield


async def test_who_stands_by_takes_over_when_the_other_process_has_ended(tmp_path: Path, port: int) -> None:
    lock = tmp_path / "lock"
    async with contextlib.AsyncExitStack() as other:
        await other.enter_async_context(standing_by(lock))
        async with listener(port, lock).running():
            with pytest.raises(httpx.ConnectError):
                await asked(port)
            await other.aclose()
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(httpx.ConnectError):
                        assert await asked(port) == "one"
                        break
                    await asyncio.sleep(0.01)


async def test_nobody_is_refused_while_one_gateway_takes_over_from_another(tmp_path: Path, port: int) -> None:
    lock = tmp_path / "lock"
    heard: set[str] = set()
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            heard.add(await asked(port))

    async with contextlib.AsyncExitStack() as stack:
        before = listener(port, lock, "0")
        await stack.enter_async_context(before.running())
        asking = asyncio.create_task(ask())
        for number in range(1, 6):
            after = listener(port, lock, str(number))
            await stack.enter_async_context(after.running())
            before.stop()
            async with asyncio.timeout(10):
                while str(number) not in heard:
                    await asyncio.sleep(0.01)
            before = after
        over.set()
        await asking
    assert "5" in heard


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"listen": "9464"}, "listen: '9464' is not HOST:PORT"),
        ({"listen": "127.0.0.1:0"}, "is not HOST:PORT"),
        ({"route": False}, "nobody could read them"),
        ({"buckets": {"queue_wait": [2, 1]}}, "queue_wait: each bound must be larger"),
        ({"buckets": {"queue_wait": [0, 1]}}, "queue_wait: bounds are above 0"),
        ({"listens": "x"}, "listens"),
    ],
)
async def test_a_wrong_configuration_says_what_is_wrong(table: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match="metrics") as raised:
        async with serve({"server": {"anonymous": True}, "plugins": {"metrics": table}}):
            pass
    assert said in str(raised.value)


async def test_where_the_files_cannot_be_made_requests_are_answered_all_the_same(
    measured: Any, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics").write_text("in the way")
    async with measured(server={"anonymous": True, "state_dir": str(tmp_path)}) as gateway:
        assert (await gateway.ask()).status_code == 200
    assert "nothing is counted" in caplog.text
