"""What a backend is asked, byte for byte: only what must differ from the client's body does, whoever sends it."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import Any

import pytest

HELLO = b'"messages":[{"role":"user","content":"hi"}]'
EDIT_BYTES = 131_072
"""The largest body that nginx edits."""


def long(size: int, model: bytes = b"fake", more: bytes = b"") -> bytes:
    """A body of so many bytes."""
    start = b'{"model":"%s"%s,"messages":[{"role":"user","content":"' % (model, more)
    return start + b"x" * (size - len(start) - 4) + b'"}]}'


BODIES = {
    "as SDKs write it": b'{"messages": [{"role": "user", "content": "hi"}], "model": "fake"}',
    "the model first": b'{"model":"fake",' + HELLO + b"}",
    "spread over lines": b' {\r\n\t"model" :\n "fake"  ,\n' + HELLO + b" }\n\n",
    "unicode": '{"messages":[{"role":"user","content":"grüße 世界 🎉 \u2028"}],"model":"fake"}'.encode(),
    "unicode before the model": '{"user":"世界🎉","model":"fake",'.encode() + HELLO + b"}",
    "escapes": rb'{"messages":[{"role":"user","content":"\"\\\/\b\f\n\r\t\u00e9\ud83c\udf89\u0000"}],"model":"fake"}',
    "an escaped name of the model": rb'{"model":"\u0066ake",' + HELLO + b"}",
    "an escaped name of the field": rb'{"mod\u0065l":"fake",' + HELLO + b"}",
    "big numbers": b'{"seed":123456789012345678901234567890,"n":1.0e+00,"model":"fake",' + HELLO + b"}",
    "the model's name elsewhere": b'{"metadata":{"model":"fake"},"model":"fake","stop":["\\"model\\":\\"fake\\""],'
    + HELLO
    + b"}",
    "an empty name": b'{"":1,"model":"fake",' + HELLO + b"}",
    "dollars": b'{"user":"$request_id ${host} $","model":"fake",' + HELLO + b"}",
    "100 KB": long(100_000),
    "as much as nginx edits": long(EDIT_BYTES),
    "a byte more": long(EDIT_BYTES + 1),
    "200 KB": long(200_000),
    "3 MB": long(3_000_000),
}


def renamed(body: bytes) -> bytes:
    """The body with the backend's name of the model: everything else as it was."""
    found = [name for name in (rb'"fake"', rb'"\u0066ake"') if name in body]
    at = body.rindex(found[0]) if b"metadata" not in body else body.index(b'"model":"fake","stop"') + 8
    return body[:at] + b'"fake-model"' + body[at + len(found[0]) :]


def sent(stack: Any, path: str = "/v1/chat/completions") -> list[bytes]:
    """What the backends were asked."""
    return [
        *(body for asked, _, body in stack.fake.requests if asked == path),
        *(body for first, _, body in stack.raw.requests if first == f"POST {path} HTTP/1.1"),
    ]


def ask(route: Any, body: bytes, **more: Any) -> dict[str, Any]:
    """Ask, and see that it is answered; the log's line."""
    identifier = uuid.uuid4().hex
    answer = route.post(body, identifier, **more)
    assert (answer.status, answer.whole) == (200, True), answer.body
    line: dict[str, Any] = route.stack.logged(identifier)
    return line


@pytest.mark.parametrize("name", BODIES)
def test_only_the_models_name_is_changed(route: Any, name: str) -> None:
    ask(route, BODIES[name])
    assert sent(route.stack) == [renamed(BODIES[name])]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_needs_no_change_is_passed_on_as_it_is(route: Any, name: str) -> None:
    body = BODIES[name].replace(b'"fake"', b'"raw"').replace(rb'"\u0066ake"', rb'"\u0072aw"')
    line = ask(route, body)
    assert sent(route.stack) == [body]
    assert line["delivery"] == route.delivery


@pytest.mark.parametrize("name", BODIES)
def test_in_a_stream_the_wish_for_usage_is_added_and_nothing_else(route: Any, name: str) -> None:
    asked = BODIES[name].rstrip().removesuffix(b"}").rstrip() + b',"stream":true}'
    ask(route, asked)
    start = renamed(asked).index(b"{") + 1
    expected = renamed(asked)[:start] + b'"stream_options":{"include_usage":true},' + renamed(asked)[start:]
    assert sent(route.stack) == [expected]


@pytest.mark.parametrize("size", [EDIT_BYTES, EDIT_BYTES + 1], ids=["as much as nginx edits", "a byte more"])
def test_a_body_too_large_to_be_edited_by_nginx_is_the_cores(front: Any, size: int) -> None:
    line = ask(front, long(size))
    assert line["delivery"] == (front.delivery if size <= EDIT_BYTES else "inline")


def test_other_stream_options_are_kept(route: Any) -> None:
    ask(route, b'{"stream_options": {"x" : [1.0] },"model":"fake","stream":true,' + HELLO + b"}")
    (body,) = sent(route.stack)
    assert json.loads(body)["stream_options"] == {"x": [1.0], "include_usage": True}
    assert body.endswith(b',"model":"fake-model","stream":true,' + HELLO + b"}")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-99","model":"fake",' + HELLO + b"}",
        b'{"model":"fake",' + HELLO + b',"temperature":1,"temperature":0.5}',
        rb'{"model":"gpt-99","mod\u0065l":"fake",' + HELLO + b"}",
    ],
    ids=["the model", "another field", "the model, escaped"],
)
def test_a_field_that_stands_there_twice_reaches_the_backend_once(route: Any, body: bytes) -> None:
    line = ask(route, body)
    (found,) = sent(route.stack)
    pairs: list[tuple[str, Any]] = json.loads(found, object_pairs_hook=list)
    assert sorted(name for name, _ in pairs) == sorted({name for name, _ in pairs})
    assert dict(pairs)["model"] == "fake-model"
    assert line["delivery"] == "inline"


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 1000, 65_536])
@pytest.mark.parametrize("size", [300, 100_000, EDIT_BYTES, 200_000])
def test_a_body_in_chunks_is_changed_like_any_other(route: Any, size: int, piece: int) -> None:
    body = long(size)
    head = route.request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    said = route.speak(head + in_chunks(body, piece))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert sent(route.stack) == [renamed(body)]


@pytest.mark.parametrize("size", [300, 100_000, EDIT_BYTES, 200_000])
def test_a_body_over_http_2_without_a_length_is_changed_like_any_other(front: Any, kit: Any, size: int) -> None:
    body, stack = long(size), front.stack
    command = [kit.need("curl")[0], "-sS", "--http2", "--max-time", "60", "--cacert", str(stack.ca), "-T", "-"]
    command += ["-X", "POST", "-H", f"Authorization: Bearer {stack.key}", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, f"{stack.url}/chat/completions"], input=body, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["choices"], done
    assert sent(stack) == [renamed(body)]
