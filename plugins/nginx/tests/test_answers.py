"""nginx's own errors: every one in the envelope, with the code that the core would use."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import errors


def assert_envelope(answer: Any, status: int, code: str | None) -> None:
    assert answer.status == status, answer.body
    assert answer.header("Content-Type") == "application/json"
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code and error["message"] and error["type"]
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Server") == "nginx"


@pytest.mark.parametrize(
    "junk", [b"GARB AGE\r\n\r\n", b"get / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x01\r\n\r\n"]
)
def test_a_malformed_request_is_answered_400(front: Any, junk: bytes) -> None:
    assert_envelope(front.raw(junk), 400, "invalid_http")


def large(folder: Path) -> Path:
    path = folder / "large"
    path.write_bytes(b"x" * 300_001)
    return path


def test_a_body_that_is_too_large_is_answered_413(front: Any, tmp_path: Path) -> None:
    before = len(front.core.arrived)
    assert_envelope(front.ask(method="POST", body=b"x" * 300_001), 413, errors.PayloadTooLarge.code)
    done = front.curl("--http2", "--data-binary", "@" + str(large(tmp_path)), front.url("/echo"))
    assert json.loads(done.stdout)["error"]["code"] == errors.PayloadTooLarge.code
    assert front.core.arrived[before:] == []


def test_a_chunked_body_that_is_too_large_is_answered_413(front: Any) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = front.raw(head + b"%x\r\n" % 300_001 + b"x" * 300_001 + b"\r\n0\r\n\r\n")
    assert_envelope(answer, 413, errors.PayloadTooLarge.code)


def test_a_url_that_is_too_long_is_answered_414(front: Any) -> None:
    assert_envelope(front.ask("/" + "x" * 70_000), 414, "uri_too_long")


def test_headers_that_are_too_large_are_answered_431(front: Any) -> None:
    assert_envelope(front.ask(headers={"X-Large": "x" * 70_000}), 431, errors.HeadersTooLarge.code)


def test_headers_beyond_the_cores_limit_are_left_to_the_core_and_cut_off_far_beyond(front: Any) -> None:
    """Over HTTP/2 nginx answers one large header by closing the connection, so it must not be the first to refuse."""
    before = len(front.core.arrived)
    done = front.curl("--http2", "--header", "X-Large: " + "x" * 40_000, front.url("/echo"))
    assert json.loads(done.stdout)["target"] == "/echo"
    assert front.curl("--http2", "--header", "X-Large: " + "x" * 100_000, front.url("/echo")).returncode != 0
    assert front.core.arrived[before:] == ["/echo"]


def test_a_client_that_is_too_slow_is_disconnected(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary, client_header_timeout=0.2, client_body_timeout=0.2) as front:
        for begun in (b"GET / HTTP/1.1\r\nHost: lo", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"):
            with front.connect() as connection:
                connection.sendall(begun)
                assert tools.read_all(connection) == b""
        assert "/" not in front.core.arrived


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "BREW"])
def test_other_methods_are_answered_405(front: Any, method: str) -> None:
    before = len(front.core.arrived)
    answer = front.ask("/echo", method)
    assert_envelope(answer, 405, errors.MethodNotAllowed.code)
    assert "POST" in (answer.header("Allow") or "")
    assert front.core.arrived[before:] == []


def test_a_proxy_request_never_leaves(front: Any) -> None:
    before = len(front.core.arrived)
    answer = front.ask("localhost:443", "CONNECT")
    assert answer.status in (400, 405)  # old versions cannot read a target without a path
    assert_envelope(answer, answer.status, answer.json()["error"]["code"])
    assert front.core.arrived[before:] == []


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_the_methods_of_an_api_pass(front: Any, method: str) -> None:
    assert front.ask(method=method).json()["method"] == method


def test_head_is_answered_without_a_body(front: Any) -> None:
    answer = front.ask("/.headrace/413", "HEAD")
    assert (answer.status, answer.body) == (404, b"")


def test_plain_http_on_the_tls_port_is_told_to_use_https(front: Any, tools: Any) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=20) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = tools.Answer(tools.read_all(connection))
    assert_envelope(answer, 400, "https_required")


def test_a_core_that_is_silent_too_long_is_answered_504_with_retry_after(front: Any) -> None:
    answer = front.ask("/hang", "POST")
    assert_envelope(answer, 504, errors.UpstreamTimeout.code)
    assert answer.header("Retry-After") == "2"


def test_errors_of_the_core_pass_untouched(front: Any) -> None:
    answer = front.ask("/error")
    assert (answer.status, answer.json(), answer.header("Retry-After")) == (502, {"said": "core"}, "7")


def test_the_places_where_errors_are_made_are_no_paths_for_clients(front: Any) -> None:
    for path in ("/.headrace/429", "/.headrace/", "/.headrace/anything"):
        assert_envelope(front.ask(path), 404, errors.NotFound.code)


def test_a_core_that_is_down_is_answered_502_and_found_again_when_it_is_back(
    binary: str, running: Callable[..., Any], tmp_path: Path, tools: Any
) -> None:
    with running(tmp_path, binary=binary) as front:
        assert front.ask().status == 200
        front.core.__exit__()
        for _ in range(3):
            answer = front.ask("/v1/chat/completions", "POST", {"Authorization": "Bearer sk-secret"}, b"{}")
            assert_envelope(answer, 502, errors.UpstreamError.code)
            assert answer.header("Retry-After") == "2"
            assert len(answer.header("X-Request-ID") or "") == 32
        with tools.Core(front.service.gateway.core_socket) as core:
            assert front.ask("/back").status == 200
            assert core.arrived == ["/back"]
    errors_said = (front.service.layout.logs / "error.log").read_text()
    assert "chat/completions" not in errors_said
