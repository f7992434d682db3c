"""What cannot be answered is refused in OpenAI's words, with the same status through nginx and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
GOOD = {"model": "fake", "messages": HELLO}
HUNDRED_MEGABYTES = 100 * 1024 * 1024
PIECE = b"x" * 65536


def request(
    stack: Any,
    body: bytes | object = b"",
    *,
    method: str = "POST",
    path: str = CHAT,
    key: str | None = "",
    headers: tuple[str, ...] = (),
) -> bytes:
    """The bytes of a request. `key`: None sends none, an empty one stands for the stack's own."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key or stack.key}")
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode("latin-1") + data


def check_envelope(answer: Any, status: int, code: str | None) -> dict[str, Any]:
    """It is the OpenAI envelope with this status and code; returns the error object."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    return error


BODIES = {
    "nothing": (b"", "invalid_json"),
    "not JSON": (b"model: fake", "invalid_json"),
    "half of it": (b'{"model": "fake", "messages": [', "invalid_json"),
    "more after it": (json.dumps(GOOD).encode() + b"}", "invalid_json"),
    "a list": ([GOOD], "invalid_json"),
    "a null": (b"null", "invalid_json"),
    "not UTF-8": (b'{"model": "fake", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_encoding"),
    "nested without end": (json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * 50_000, "invalid_json"),
    "nested very deeply": (
        json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "invalid_json",
    ),
    "no model": ({"messages": HELLO}, "missing_field"),
    "model null": ({**GOOD, "model": None}, "invalid_field"),
    "model empty": ({**GOOD, "model": ""}, "invalid_field"),
    "model a number": ({**GOOD, "model": 7}, "invalid_field"),
    "no messages": ({"model": "fake"}, "missing_field"),
    "messages empty": ({**GOOD, "messages": []}, "invalid_field"),
    "messages a string": ({**GOOD, "messages": "hi"}, "invalid_field"),
    "a message without a role": ({**GOOD, "messages": [{"content": "hi"}]}, "missing_field"),
    "stream a string": ({**GOOD, "stream": "yes"}, "invalid_field"),
    "max_tokens a string": ({**GOOD, "max_tokens": "many"}, "invalid_field"),
    "temperature a list": ({**GOOD, "temperature": [1]}, "invalid_field"),
    "stream_options a number": ({**GOOD, "stream_options": 1}, "invalid_field"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_answered_400(route: Any, name: str) -> None:
    body, code = BODIES[name]
    check_envelope(route.raw(request(route.stack, body)), 400, code)


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_never_reaches_a_backend(route: Any, name: str) -> None:
    route.raw(request(route.stack, BODIES[name][0]))
    assert [path for path, _, _ in route.stack.fake.requests if path.endswith("completions")] == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_the_other_endpoints_check_their_bodies_too(route: Any, path: str) -> None:
    check_envelope(route.raw(request(route.stack, {"model": "fake"}, path=path)), 400, "missing_field")


def test_an_unknown_model_is_answered_with_the_models_there_are(route: Any) -> None:
    answer = route.raw(request(route.stack, {**GOOD, "model": "gpt-99"}))
    error = check_envelope(answer, 404, "model_not_found")
    assert error["param"] == "model"
    assert all(name in error["message"] for name in ("gpt-99", "smollm2-135m", "fake", "rescued"))


@pytest.mark.parametrize("key", [None, "hr-wrong", "x" * 5000, "hr-\xe4\xf6\xfc"])
@pytest.mark.parametrize("method, path", [("POST", CHAT), ("GET", "/v1/models")])
def test_without_a_known_key_nothing_is_answered(route: Any, key: str | None, method: str, path: str) -> None:
    answer = route.raw(request(route.stack, GOOD, key=key, method=method, path=path))
    check_envelope(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scheme", ["Basic aHI6aHI=", "Bearer", "Bearer  ", "Digest x"])
def test_credentials_of_another_kind_are_refused(route: Any, scheme: str) -> None:
    answer = route.raw(request(route.stack, GOOD, key=None, headers=(f"Authorization: {scheme}",)))
    check_envelope(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE", "BREW"])
def test_a_wrong_method_is_answered_405_with_those_allowed(route: Any, method: str) -> None:
    answer = route.raw(request(route.stack, GOOD, method=method))
    check_envelope(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_answered_404(route: Any, method: str) -> None:
    check_envelope(route.raw(request(route.stack, GOOD, method=method, path="/v1/nothing/here")), 404, "not_found")


def declared(stack: Any) -> Iterator[bytes]:
    head = request(stack).replace(b"Content-Length: 0", b"Content-Length: %d" % HUNDRED_MEGABYTES)
    yield head
    for _ in range(HUNDRED_MEGABYTES // len(PIECE)):
        yield PIECE


def in_chunks(stack: Any) -> Iterator[bytes]:
    yield request(stack).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    for _ in range(HUNDRED_MEGABYTES // len(PIECE)):
        yield b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
    yield b"0\r\n\r\n"


@pytest.mark.parametrize("sending", [declared, in_chunks])
def test_a_body_of_100_megabytes_is_answered_413(route: Any, sending: Any) -> None:
    answer = route.raw(*sending(route.stack))
    error = check_envelope(answer, 413, "request_too_large")
    assert "33554432" in error["message"]


@pytest.mark.parametrize(
    "headers",
    [("X-Long: " + "x" * 40_000,), ("X-Longer: " + "x" * 1_000_000,), tuple(f"X-{n}: {n:0100}" for n in range(1000))],
    ids=["40 kB in one", "1 MB in one", "1000 of them"],
)
def test_absurd_headers_are_answered_431(route: Any, headers: tuple[str, ...]) -> None:
    check_envelope(route.raw(request(route.stack, GOOD, headers=headers)), 431, "headers_too_large")


MALFORMED = {
    "no request line": b"hello there\r\n\r\n",
    "no such version": b"GET /v1/models HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "two lengths": b"POST "
    + CHAT.encode()
    + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "a length of letters": b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
    "a length and chunks": b"POST "
    + CHAT.encode()
    + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown transfer coding": b"POST "
    + CHAT.encode()
    + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nxx",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "bytes of TLS": bytes.fromhex("16030100c8010000c40303") + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_answered_400(route: Any, name: str) -> None:
    check_envelope(route.raw(MALFORMED[name]), 400, "invalid_http")


def test_http_1_0_without_a_host_is_no_mistake(route: Any) -> None:
    assert route.raw(b"GET /health HTTP/1.0\r\n\r\n").status == 200


def test_after_all_that_a_good_request_is_answered(route: Any) -> None:
    answer = route.raw(request(route.stack, GOOD))
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
