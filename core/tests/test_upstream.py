"""The one HTTP client: its pools, unix sockets, and bytes that pass as they are."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.config import Secret, TargetTimeouts
from headrace.errors import ConfigError, GatewayError, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from headrace.exchange import Reply, Target, UpstreamRequest, header
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import COMPLETION, FakeBackend, serve
from headrace.upstream import Upstream, target_headers

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Backend:
    """Answers every request with `answer`; keeps the requests' heads and counts the connections."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.close_after_answer = False
        self.hold: asyncio.Event | None = None
        self.closed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()
            self.closed.set()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        if self.hold is not None:
            await self.hold.wait()
        writer.write(self.answer)
        await writer.drain()
        return bool(self.answer) and not self.close_after_answer

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def listening(backend: Backend) -> AsyncIterator[str]:
    """Serve it on the loopback; yields `HOST:PORT`."""
    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await backend.stop()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    client = Upstream()
    yield client
    await client.aclose()


def target(url: str, **fields: Any) -> Target:
    return Target(name="t", provider="openai", base_url=url, **fields)


async def post(upstream: Upstream, at: Target, path: str = "/chat/completions") -> Reply:
    return await upstream.send(at, UpstreamRequest(url=at.base_url + path, headers=target_headers(at), body=b"{}"))


# --- Pool ---


async def test_one_connection_serves_one_request_after_the_other(upstream: Upstream) -> None:
    backend = Backend()
    async with listening(backend) as address:
        for _ in range(5):
            assert (await post(upstream, target(f"http://{address}"))).content == b"{}"
    assert (len(backend.heads), backend.connections) == (5, 1)


async def test_no_more_connections_are_opened_than_allowed_and_the_rest_wait(upstream: Upstream) -> None:
    backend = Backend()
    backend.hold = asyncio.Event()
    async with listening(backend) as address:
        at = target(f"http://{address}", max_connections=2)
        asking = [asyncio.create_task(post(upstream, at)) for _ in range(6)]
        async with asyncio.timeout(10):
            while backend.open < 2:
                await asyncio.sleep(0.005)
        backend.hold.set()
        replies = await asyncio.gather(*asking)
    assert [reply.status for reply in replies] == [200] * 6
    assert backend.connections == 2


async def test_a_request_that_waits_too_long_for_a_connection_is_a_timeout(upstream: Upstream) -> None:
    backend = Backend()
    backend.hold = asyncio.Event()
    async with listening(backend) as address:
        at = target(f"http://{address}", max_connections=1, timeouts=TargetTimeouts(connect=0.2))
        first = asyncio.create_task(post(upstream, at))
        async with asyncio.timeout(10):
            while not backend.heads:
                await asyncio.sleep(0.005)
        with pytest.raises(UpstreamTimeout, match="No connection to the backend could be had in time"):
            await post(upstream, at)
        backend.hold.set()
        assert (await first).status == 200


async def test_an_idle_connection_that_the_backend_closed_is_replaced_unnoticed(upstream: Upstream) -> None:
    backend = Backend()
    backend.close_after_answer = True
    async with listening(backend) as address:
        for _ in range(3):
            backend.closed.clear()
            assert (await post(upstream, target(f"http://{address}"))).status == 200
            await backend.closed.wait()
            await asyncio.sleep(0.02)  # the closing has to cross the loopback
    assert backend.connections == 3


async def test_a_connection_that_closes_under_the_request_can_be_tried_elsewhere(upstream: Upstream) -> None:
    async with listening(Backend(b"")) as address:
        with pytest.raises(UpstreamError) as raised:
            await post(upstream, target(f"http://{address}"))
    assert (raised.value.status, raised.value.retryable) == (502, True)


async def test_a_request_that_is_cancelled_closes_its_connection_and_is_no_timeout(upstream: Upstream) -> None:
    backend = Backend()
    backend.hold = asyncio.Event()
    async with listening(backend) as address:
        asking = asyncio.create_task(post(upstream, target(f"http://{address}")))
        async with asyncio.timeout(10):
            while not backend.heads:
                await asyncio.sleep(0.005)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            backend.hold.set()
            await backend.closed.wait()


async def test_a_cancellation_that_meets_the_first_byte_limit_is_not_swallowed(upstream: Upstream) -> None:
    backend = Backend()
    backend.hold = asyncio.Event()
    async with listening(backend) as address:
        at = target(f"http://{address}", timeouts=TargetTimeouts(first_byte=0.2))

        async def ask() -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.2, task.cancel)  # fires in the same round as the limit, or before
            await post(upstream, at)

        asking = asyncio.create_task(ask())
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asking.cancelled()


async def test_a_refused_connection_is_unavailable_and_keeps_the_address_to_the_log(upstream: Upstream) -> None:
    with pytest.raises(Unavailable) as raised:
        await post(upstream, target("http://127.0.0.1:9"))
    assert raised.value.message == "The backend cannot be reached."
    assert raised.value.detail is not None
    assert "target t at http://127.0.0.1:9" in raised.value.detail


async def test_a_name_that_does_not_resolve_is_unavailable(upstream: Upstream) -> None:
    with pytest.raises(Unavailable):
        await post(upstream, target("http://no-such-host.invalid"))


# --- Unix sockets ---


async def test_a_unix_socket_is_spoken_to_in_place_of_the_urls_host(upstream: Upstream, tmp_path: Path) -> None:
    backend = Backend()
    server = await asyncio.start_unix_server(backend, tmp_path / "b.sock")
    try:
        reply = await post(upstream, target("http://engine/v1", socket=str(tmp_path / "b.sock")))
        assert reply.content == b"{}"
        assert backend.heads[0].lower().startswith(b"post /v1/chat/completions http/1.1\r\nhost: engine\r\n")
    finally:
        server.close()
        await backend.stop()


async def test_a_unix_socket_that_is_not_there_is_unavailable(upstream: Upstream, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await post(upstream, target("http://engine/v1", socket=str(tmp_path / "none.sock")))


# --- What comes back ---


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(each + b"\r\n" for each in (b"Content-Type: application/json", *headers))
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, lines, len(body), body)


async def test_a_compressed_reply_passes_unopened(upstream: Upstream) -> None:
    packed = gzip.compress(b'{"a":1}')
    async with listening(Backend(answer(packed, b"Content-Encoding: gzip"))) as address:
        reply = await post(upstream, target(f"http://{address}"))
    assert (reply.content, header(reply.headers, b"content-encoding")) == (packed, "gzip")


async def test_a_compressed_reply_reaches_the_client_readable() -> None:
    backend = Backend(answer(gzip.compress(COMPLETION), b"Content-Encoding: gzip"))
    async with listening(backend) as address:
        document = {
            "server": {"anonymous": True},
            "models": {"test": {"targets": [{"provider": "openai", "base_url": f"http://{address}"}]}},
            "plugins": {"openai": {}},
        }
        async with serve(document) as running, httpx.AsyncClient(trust_env=False) as client:
            response = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
    assert response.content == COMPLETION


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary Redirect", b"308 Permanent Redirect"])
async def test_a_redirect_is_not_followed_but_an_error_of_the_backend(upstream: Upstream, status: bytes) -> None:
    elsewhere = Backend()
    async with listening(elsewhere) as there:
        moved = Backend(answer(b"{}", b"Location: http://%s/" % there.encode(), status=status))
        async with listening(moved) as address:
            with pytest.raises(UpstreamError, match="base_url"):
                await post(upstream, target(f"http://{address}", api_key=Secret("sk-secret")))
    assert elsewhere.heads == []


async def test_cookies_of_one_reply_are_not_sent_with_the_next_request(upstream: Upstream) -> None:
    backend = Backend(answer(b"{}", b"Set-Cookie: session=1; Path=/"))
    async with listening(backend) as address:
        await post(upstream, target(f"http://{address}"))
        await post(upstream, target(f"http://{address}"))
    assert b"cookie" not in backend.heads[1].lower()


async def test_nothing_is_added_to_the_headers_a_provider_asked_for(upstream: Upstream) -> None:
    backend = Backend()
    async with listening(backend) as address:
        await post(upstream, target(f"http://{address}", api_key=Secret("sk-1"), headers={"X-Org": Secret("o")}))
    lines = backend.heads[0].decode().rstrip().split("\r\n")[1:]
    sent = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert sent == {
        "host": address, "accept-encoding": "identity", "x-org": "o", "authorization": "Bearer sk-1",
        "content-length": "2", "accept": "*/*",
    }  # fmt: skip


async def test_a_headers_bytes_reach_the_backend_as_they_came(upstream: Upstream) -> None:
    backend = Backend()
    came = "Z\u00fcrich, \u6771\u4eac".encode()
    async with listening(backend) as address:
        headers = {"User-Agent": came.decode("latin-1")}
        await upstream.send(
            target(f"http://{address}"), UpstreamRequest(url=f"http://{address}/", headers=headers, body=b"")
        )
    assert b": " + came + b"\r\n" in backend.heads[0]


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (b"500 X", b"{}", UpstreamError, "upstream_error"),
        (b"408 X", b"{}", UpstreamError, "upstream_error"),
        (b"503 X", b"{}", Unavailable, "unavailable"),
        (b"429 X", b"{}", RateLimited, "upstream_rate_limited"),
        (b"401 X", b"{}", UpstreamError, "upstream_auth"),
        (b"404 X", b"Not Found", UpstreamError, "upstream_error"),
    ],
)
async def test_an_error_status_is_raised_in_our_words_with_the_backends_as_evidence(
    upstream: Upstream, status: bytes, body: bytes, kind: type[GatewayError], code: str
) -> None:
    async with listening(Backend(answer(body, status=status))) as address:
        with pytest.raises(kind) as raised:
            await post(upstream, target(f"http://{address}"))
        unchecked = await upstream.send(
            target(f"http://{address}"),
            UpstreamRequest(url=f"http://{address}/", headers={}, body=b""),
            checked=False,
        )
    assert raised.value.code == code
    assert (raised.value.evidence, body.decode() in (raised.value.detail or "")) == (body.decode(), False)
    assert (unchecked.status, unchecked.content) == (int(status[:3]), body)


async def test_a_backend_that_never_answers_is_a_timeout_and_is_let_go(upstream: Upstream) -> None:
    async with FakeBackend() as backend:
        backend.silent = True
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0.5 s"):
            await post(upstream, target(backend.url, timeouts=TargetTimeouts(first_byte=0.5)))
        await asyncio.wait_for(backend.closed_early.wait(), 5)


def test_two_backends_never_share_a_name() -> None:
    document = {
        "backends": {"test-0": {"provider": "openai", "base_url": "https://gpu1", "verify": False}},
        "models": {
            "test": {"targets": [{"provider": "openai", "base_url": "https://gpu2"}]},
            "other": {"targets": ["test-0"]},
        },
        "plugins": {"openai": {}},
    }
    try:
        models = Gateway(parse(document)).assemble().models
    except ConfigError as error:
        assert "test-0" in str(error)
    else:
        first, second = (model.targets[0].name for model in models)
        assert first != second
