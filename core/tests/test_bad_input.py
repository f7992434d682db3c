"""Whatever is sent to the core's socket: the right status in OpenAI's envelope, and it goes on answering."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import Forbidden
from headrace.exchange import Exchange
from headrace.testing import FakeBackend, Running, serve

CHAT = b"/v1/chat/completions"
GOOD = b'{"model":"test","messages":[{"role":"user","content":"hi"}]}'
LIMIT = 100_000


@contextlib.asynccontextmanager
async def gateway(**server: Any) -> AsyncIterator[tuple[Running, FakeBackend]]:
    settings = {"anonymous": True, "max_body_bytes": LIMIT, **server}
    async with FakeBackend() as backend, serve(backend.config(server=settings)) as running:
        yield running, backend


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Bad input is the caller's business: nothing of it may look like a fault of ours in the log."""
    yield
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


async def ask(
    url: str, sent: bytes, more: AsyncGenerator[bytes, None] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes, read one answer: status, headers by lower-case name, body. Fails if there is none."""
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    sending = asyncio.create_task(_send(writer, sent, more))
    try:
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _send(writer: asyncio.StreamWriter, sent: bytes, more: AsyncGenerator[bytes, None] | None) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(sent)
        if more is not None:
            async with contextlib.aclosing(more):
                async for piece in more:
                    writer.write(piece)
                    await writer.drain()


def post(body: bytes, *headers: bytes, path: bytes = CHAT) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", b"Content-Length: %d" % len(body), *headers))
    return b"POST %s HTTP/1.1\r\n%s\r\n%s" % (path, lines, body)


def error_in(body: bytes) -> dict[str, Any]:
    document = json.loads(body)
    assert document.keys() == {"error"}
    error: dict[str, Any] = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


async def assert_answers(url: str) -> None:
    status, _, _ = await ask(url, post(GOOD))
    assert status == 200


BODIES = {
    "empty": (b"", "invalid_json", None),
    "not JSON": (b"hello", "invalid_json", None),
    "half": (GOOD[:-2], "invalid_json", None),
    "two documents": (GOOD + GOOD, "invalid_json", None),
    "trailing comma": (GOOD[:-1] + b",}", "invalid_json", None),
    "an array": (b"[1]", "invalid_json", None),
    "null": (b"null", "invalid_json", None),
    "a string": (b'"x"', "invalid_json", None),
    "NaN": (GOOD[:-1] + b',"temperature":NaN}', "invalid_json", None),
    "bad UTF-8": (GOOD.replace(b"hi", b"\xff\xfe"), "invalid_encoding", None),
    "UTF-16": (GOOD.decode().encode("utf-16"), "invalid_encoding", None),
    "overlong UTF-8": (GOOD.replace(b"hi", b"\xc0\xaf"), "invalid_encoding", None),
    "surrogate bytes": (GOOD.replace(b"hi", b"\xed\xa0\x80"), "invalid_encoding", None),
    "control character": (GOOD.replace(b"hi", b"\x00"), "invalid_json", None),
    "no model": (b'{"messages":[{"role":"user"}]}', "missing_field", "model"),
    "model is null": (GOOD.replace(b'"test"', b"null"), "invalid_field", "model"),
    "model is a number": (GOOD.replace(b'"test"', b"7"), "invalid_field", "model"),
    "model is empty": (GOOD.replace(b"test", b""), "invalid_field", "model"),
    "model is long": (GOOD.replace(b"test", b"x" * 257), "invalid_field", "model"),
    "no messages": (b'{"model":"test"}', "missing_field", "messages"),
    "empty messages": (b'{"model":"test","messages":[]}', "invalid_field", "messages"),
    "messages is text": (b'{"model":"test","messages":"hi"}', "invalid_field", "messages"),
    "a message is text": (b'{"model":"test","messages":["hi"]}', "invalid_field", "messages[0]"),
    "no role": (b'{"model":"test","messages":[{"role":"user"},{}]}', "missing_field", "messages[1].role"),
    "stream is text": (GOOD[:-1] + b',"stream":"yes"}', "invalid_field", "stream"),
    "max_tokens is text": (GOOD[:-1] + b',"max_tokens":"7"}', "invalid_field", "max_tokens"),
    "temperature is text": (GOOD[:-1] + b',"temperature":"hot"}', "invalid_field", "temperature"),
    "stream_options": (GOOD[:-1] + b',"stream_options":[]}', "invalid_field", "stream_options"),
}


async def test_a_bad_body_is_a_400_that_names_the_field() -> None:
    async with gateway() as (running, backend):
        found = {}
        for name, (body, _, _) in BODIES.items():
            status, headers, answer = await ask(running.url, post(body))
            error = error_in(answer)
            assert (status, headers["content-type"]) == (400, "application/json"), name
            found[name] = (error["code"], error["param"])
        assert found == {name: (code, param) for name, (_, code, param) in BODIES.items()}
        assert backend.requests == []
        await assert_answers(running.url)


@pytest.mark.parametrize("path", ["completions", "embeddings"])
async def test_the_other_endpoints_check_their_own_fields(path: str) -> None:
    field = {"completions": "prompt", "embeddings": "input"}[path]
    async with gateway() as (running, _):
        for value, code in ((None, "missing_field"), (7, "invalid_field"), ([None], "invalid_field")):
            body = {"model": "test", **({} if value is None else {field: value})}
            sent = post(json.dumps(body).encode(), path=b"/v1/" + path.encode())
            status, _, answer = await ask(running.url, sent)
            assert (status, error_in(answer)["code"]) == (400, code)


@pytest.mark.parametrize("model", [rb"\ud800", rb"\u0000", rb"\n<script>", b"'" * 200, "é".encode(), b"../../etc"])
async def test_an_odd_model_name_is_only_ever_not_found(model: bytes) -> None:
    async with gateway() as (running, _):
        status, _, answer = await ask(running.url, post(GOOD.replace(b"test", model)))
        assert (status, error_in(answer)["param"]) in ((404, "model"), (400, None))
        assert len(answer) < 500


async def test_deep_nesting_is_passed_on_or_refused_but_never_a_fault() -> None:
    async with gateway(max_body_bytes=10_000_000) as (running, _):
        for depth in (10, 100, *range(900, 1020, 4), 100_000, 1_000_000):
            content = b"[" * depth + b"]" * depth
            body = b'{"model":"test","messages":[{"role":"user","content":%s}],"x":%s}' % (content, content)
            status, _, answer = await ask(running.url, post(body))
            assert status == 200 or (status, error_in(answer)["code"]) == (400, "invalid_json"), depth
        await assert_answers(running.url)


MALFORMED = {
    "HTTP/9": b"GET /health HTTP/9.9\r\n\r\n",
    "negative length": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n" % CHAT,
    "garbage length": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n" % CHAT,
    "huge length": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % (CHAT, b"9" * 40),
    "two lengths": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx" % CHAT,
    "length and chunked": b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0"
    % CHAT,
    "NUL in a header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "space in a header name": b"GET /health HTTP/1.1\r\nHost: x\r\nX Y: a\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nHost x\r\n\r\n",
}


async def test_malformed_http_is_a_400_in_the_envelope_and_the_connection_is_closed() -> None:
    async with gateway() as (running, backend):
        for name, sent in MALFORMED.items():
            status, headers, answer = await ask(running.url, sent)
            assert (status, error_in(answer)["code"]) == (400, "invalid_http"), name
            assert headers["connection"] == "close"
        assert backend.requests == []
        await assert_answers(running.url)


@pytest.mark.parametrize("sent", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)])
async def test_what_is_no_http_at_all_is_refused_in_the_envelope(sent: bytes) -> None:
    async with gateway() as (running, _):
        status, headers, answer = await ask(running.url, sent)
        assert (status, error_in(answer)["code"]) in {(400, "invalid_http"), (405, "method_not_allowed")}
        assert headers["connection"] == "close"
        await assert_answers(running.url)


async def test_a_broken_chunked_body_never_reaches_the_backend() -> None:
    async with gateway() as (running, backend):
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT
        status, _, answer = await ask(running.url, head + b"zz\r\n" + GOOD)
        assert (status, error_in(answer)["code"]) == (400, "invalid_http")
        assert backend.requests == []
        await assert_answers(running.url)


async def _pieces(piece: bytes, count: int) -> AsyncGenerator[bytes, None]:
    for _ in range(count):
        yield piece


HEADS = {
    "one header of 64 kB": b"X: " + b"a" * 65_536 + b"\r\n\r\n",
    "ten thousand headers": b"".join(b"X-%d: a\r\n" % number for number in range(10_000)) + b"\r\n",
    "a long name": b"X" * 65_536 + b": a\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
async def test_an_absurd_head_is_a_431(name: str) -> None:
    async with gateway() as (running, _):
        status, headers, answer = await ask(running.url, b"GET /health HTTP/1.1\r\nHost: x\r\n" + HEADS[name])
        assert (status, error_in(answer)["code"], headers["connection"]) == (431, "headers_too_large", "close")
        await assert_answers(running.url)


async def test_an_absurd_url_is_a_431() -> None:
    async with gateway() as (running, _):
        status, _, answer = await ask(running.url, b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, error_in(answer)["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nX: ", b"GET /", b"GET /health HTTP/1.1\r\n"])
async def test_a_head_without_end_is_stopped_at_the_limit(start: bytes) -> None:
    piece = b"X: a\r\n" * 1000 if start.endswith(b"\r\n") else b"a" * 6000
    async with gateway() as (running, _):
        status, _, _ = await ask(running.url, start, _pieces(piece, 10_000))
        assert status == 431
        await assert_answers(running.url)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"])
async def test_any_other_method_on_an_endpoint_is_a_405_with_allow(path: bytes, method: str) -> None:
    async with gateway() as (running, _), httpx.AsyncClient(trust_env=False) as client:
        response = await client.request(method, running.url + path.decode())
        assert (response.status_code, "POST" in response.headers["allow"]) == (405, True)
        assert method == "HEAD" or error_in(response.content)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/v1", "/v1/chat", "/v1/chat/completions/", "//v1/chat/completions", "/v1/chat/completions%00"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_path_is_a_404_in_the_envelope(path: str, method: str) -> None:
    async with gateway() as (running, _):
        sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        status, _, answer = await ask(running.url, sent)
        assert (status, error_in(answer)["code"]) == (404, "not_found")


# --- Too much, too slow ---


async def test_a_body_declared_too_large_is_refused_before_it_is_sent() -> None:
    async with gateway() as (running, _):
        sent = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n" % CHAT
        status, headers, answer = await ask(running.url, sent)
        assert (status, error_in(answer)["code"], headers["connection"]) == (413, "request_too_large", "close")
        await assert_answers(running.url)


async def test_a_client_that_asks_first_is_not_told_to_go_on_with_too_large_a_body() -> None:
    async with gateway() as (running, _):
        sent = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 104857600\r\n\r\n" % CHAT
        assert (await ask(running.url, sent))[0] == 413


async def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    async with gateway() as (running, _):
        body = GOOD + b" " * (LIMIT - len(GOOD))
        assert (await ask(running.url, post(body)))[0] == 200
        assert (await ask(running.url, post(body + b" ")))[0] == 413
        chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT
        for extra, expected in ((b"", 200), (b" ", 413)):
            whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body + extra), body + extra)
            assert (await ask(running.url, chunked + whole))[0] == expected


def push(url: str, head: bytes, piece: bytes, count: int) -> bytes:
    """Send until the other side closes, then read: what a client does that does not look while it sends."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for _ in range(count):
                connection.sendall(piece)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(65_536):
                answer += received
        return answer


def _peak_kilobytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_of_a_hundred_megabytes_is_a_413_and_costs_no_memory(tmp_path: Path, declared: bool) -> None:
    (tmp_path / "c.toml").write_text(
        f'[server]\nlisten = "127.0.0.1:0"\nstate_dir = "{tmp_path}"\nanonymous = true\nmax_body_bytes = {LIMIT}\n'
    )
    with serving(tmp_path) as (pid, url):
        await ask(url, post(GOOD))
        before = _peak_kilobytes(pid)
        framing = b"Content-Length: 104857600" if declared else b"Transfer-Encoding: chunked"
        mebibyte = b" " * 1_048_576
        piece = mebibyte if declared else b"100000\r\n" + mebibyte + b"\r\n"
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (CHAT, framing)
        answer = await asyncio.to_thread(push, url, head, piece, 100)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert error_in(answer.partition(b"\r\n\r\n")[2])["code"] == "request_too_large"
        assert _peak_kilobytes(pid) - before < 20_000
        assert (await ask(url, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[int, str]]:
    """`serve` in a process of its own, so that its memory can be told from ours."""
    code = (
        "import sys, asyncio\nfrom pathlib import Path\n"
        "from headrace.gateway import Gateway\nfrom headrace.server import serve\nfrom headrace.sockets import bind\n"
        "gateway = Gateway.from_file(Path(sys.argv[1])).assemble()\nlistener = bind('127.0.0.1:0')\nlistener.listen()\n"
        "print(listener.getsockname()[1], flush=True)\nasyncio.run(serve(gateway, [listener]))\n"
    )
    argv = [sys.executable, "-c", code, str(directory / "c.toml")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("sent", [b"", GOOD[:10]])
@pytest.mark.parametrize("framing", [b"Content-Length: 60", b"Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_arrive_in_time_is_a_408(framing: bytes, sent: bytes) -> None:
    async with gateway(body_timeout=0.3) as (running, backend):
        begun = sent if b"Length" in framing or not sent else b"%x\r\n%s\r\n" % (len(sent), sent)
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (CHAT, framing)
        status, headers, answer = await ask(running.url, head + begun)
        assert (status, error_in(answer)["code"], headers["connection"]) == (408, "request_timeout", "close")
        assert backend.requests == []
        await assert_answers(running.url)


async def test_a_body_that_trickles_in_is_stopped_at_the_same_time() -> None:
    async def trickle() -> AsyncGenerator[bytes, None]:
        while True:
            await asyncio.sleep(0.05)
            yield b" "

    async with gateway(body_timeout=0.4) as (running, _):
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" % CHAT
        started = asyncio.get_running_loop().time()
        status, _, _ = await ask(running.url, head, trickle())
        assert status == 408
        assert asyncio.get_running_loop().time() - started < 5


async def test_a_client_without_keep_alive_and_one_of_http_1_0_are_answered() -> None:
    async with gateway() as (running, _):
        for sent in (post(GOOD, b"Connection: close"), post(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0")):
            assert (await ask(running.url, sent))[0] == 200


async def test_requests_sent_back_to_back_are_answered_in_order() -> None:
    async with gateway() as (running, _):
        address = httpx.URL(running.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(post(GOOD, b"X-Request-ID: a") + post(b"{}", b"X-Request-ID: b") + post(GOOD, b"X-Request-ID: c"))
        seen = []
        async with asyncio.timeout(30):
            for _ in range(3):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                identifier = re.search(rb"x-request-id: (\w)", head)
                seen.append((head.split()[1], identifier[1] if identifier else b""))
        writer.close()
    assert seen == [(b"200", b"a"), (b"400", b"b"), (b"200", b"c")]


async def test_a_key_in_a_trailer_is_no_key() -> None:
    class Reads:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def authorize(self, exchange: Exchange) -> None:
            if exchange.header(b"x-late"):
                raise Forbidden("A trailer became a header.")

    body = json.dumps({"model": "test", "messages": [{"role": "user", "content": "x"}]}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + b"%x\r\n%s\r\n0\r\nX-Late: 1\r\n\r\n" % (len(body), body)
    )
    async with FakeBackend() as backend, serve(backend.config(), {"reads": Reads}) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
