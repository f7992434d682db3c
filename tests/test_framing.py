"""Requests and answers whose end is in doubt: nothing behind them is ever taken for another one."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
BODY = json.dumps({"model": "fake", "messages": HELLO}).encode()
SORRY = b'{"error":{"message":"sorry","type":"server_error","param":null,"code":null}}'


def hidden(stack: Any, identifier: str) -> bytes:
    """A whole request that hides in what comes after another one's head."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {stack.key}"]
    lines += [f"X-Request-ID: {identifier}", f"Content-Length: {len(BODY)}", "", ""]
    return "\r\n".join(lines).encode() + BODY


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


END = b"0\r\n\r\n"
DOUBTFUL: dict[str, tuple[list[str], str]] = {
    "a length, then chunks": (["Content-Length: {rest}", "Transfer-Encoding: chunked"], "chunks"),
    "chunks, then a length": (["Transfer-Encoding: chunked", "Content-Length: {rest}"], "chunks"),
    "a length shorter than the chunks": (["Content-Length: 5", "Transfer-Encoding: chunked"], "chunks"),
    "two lengths": (["Content-Length: {body}", "Content-Length: {rest}"], "plain"),
    "two lengths, the longer first": (["Content-Length: {rest}", "Content-Length: {body}"], "plain"),
    "two lengths in one": (["Content-Length: {body}, {rest}"], "plain"),
    "a signed length": (["Content-Length: +{body}"], "plain"),
    "a length in hexadecimal": (["Content-Length: 0x{body:x}"], "plain"),
    "a negative length": (["Content-Length: -1"], "plain"),
    "a huge length": (["Content-Length: 18446744073709551617"], "plain"),
    "a length with a space in its name": (["Content-Length : {body}"], "plain"),
    "a length with an underscore": (["Content_Length: {rest}", "Content-Length: {body}"], "ended"),
    "a folded length": (["Content-Length:\r\n {body}"], "plain"),
    "chunks twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "chunks"),
    "chunks twice in one": (["Transfer-Encoding: chunked, chunked"], "chunks"),
    "chunks and identity": (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], "chunks"),
    "identity and chunks": (["Transfer-Encoding: identity, chunked"], "chunks"),
    "chunks in quotes": (['Transfer-Encoding: "chunked"', "Content-Length: {rest}"], "chunks"),
    "almost chunks": (["Transfer-Encoding: xchunked", "Content-Length: {rest}"], "chunks"),
    "chunks behind a tab": (["Transfer-Encoding:\tchunked", "Content-Length: {rest}"], "chunks"),
    "chunks behind a vertical tab": (["Transfer-Encoding:\x0bchunked", "Content-Length: {rest}"], "chunks"),
    "folded chunks": (["Transfer-Encoding:\r\n chunked", "Content-Length: {rest}"], "chunks"),
    "chunks with a space in the name": (["Transfer-Encoding : chunked", "Content-Length: {rest}"], "chunks"),
    "chunks behind a bare line feed": (["X-A: b\nTransfer-Encoding: chunked", "Content-Length: {rest}"], "chunks"),
    "chunks behind a bare return": (["X-A: b\rTransfer-Encoding: chunked", "Content-Length: {rest}"], "chunks"),
    "neither": ([], "plain"),
    "a GET with a length": (["Content-Length: {rest}", "X-Method: GET"], "plain"),
}
"""The headers of a request, and how its body is sent: a hidden request comes in it or behind it."""


def made(stack: Any, name: str, identifier: str) -> bytes:
    lines, how = DOUBTFUL[name]
    extra = hidden(stack, identifier)
    said = {"plain": BODY + extra, "ended": BODY, "chunks": chunks(BODY) + END + extra}[how]
    head = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Connection: close", f"Authorization: Bearer {stack.key}"]
    text = "\r\n".join([*head, *lines, "", ""]).format(body=len(BODY), rest=len(said))
    return text.encode("latin-1") + said


def ids(stack: Any) -> list[str]:
    """The ids of all requests in the log and in nginx's."""
    files = (stack.logs / "requests.log", stack.logs / "access.log")
    lines = [
        json.loads(line)
        for file in files
        if file.exists()
        for line in file.read_text().rpartition("\n")[0].splitlines()
    ]
    return [line["request_id"] for line in lines if "request_id" in line]


def see_the_end(route: Any) -> None:
    """Ask once more, and wait for its line: what came before has been logged by then."""
    identifier = f"end-{uuid.uuid4().hex}"
    assert route.post(BODY, identifier).status == 200
    route.stack.logged(identifier)


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_request_whose_end_is_in_doubt_hides_no_other(route: Any, name: str) -> None:
    identifier = f"hidden-{uuid.uuid4().hex}"
    said = route.speak(made(route.stack, name, identifier))
    assert said.count(b"HTTP/1.1 ") == 1
    see_the_end(route)
    assert identifier not in ids(route.stack)
    bodies = [body for path, _, body in route.stack.fake.requests if path == CHAT]
    assert len(bodies) <= 2
    assert b"hidden-" not in b"".join(bodies)


CHUNKED: dict[str, bytes] = {
    "an extension": b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "an extension in quotes": b'%x;a="b;c"\r\n%s\r\n0;x\r\n\r\n' % (len(BODY), BODY),
    "a trailer": b"%x\r\n%s\r\n0\r\nX-Headrace-Mark: a\r\nAuthorization: Bearer b\r\n\r\n" % (len(BODY), BODY),
    "a size with zeros": b"000%x\r\n%s\r\n000\r\n\r\n" % (len(BODY), BODY),
    "many pieces": b"".join(b"1\r\n%c\r\n" % each for each in BODY) + END,
}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_that_are_odd_but_right_are_one_request(route: Any, name: str) -> None:
    head = route.request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    said = route.speak(head + CHUNKED[name])
    assert said.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))
    assert said.count(b"HTTP/1.1 ") == 1
    found = [body for path, _, body in route.stack.fake.requests if path == CHAT]
    assert found in ([], [BODY.replace(b'"fake"', b'"fake-model"')])


BROKEN_CHUNKS = {
    "a size that is none": b"zz\r\n",
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size in 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a huge size": b"ffffffffffffffffff\r\n",
    "a piece longer than its size": b"2\r\nhello\r\n0\r\n\r\n",
    "bare line feeds": b"5\nhello\n0\n\n",
    "a line feed in an extension": b"5;\nx\r\nhello\r\n0\r\n\r\n",
    "an endless extension": b"5;" + b"x" * 200_000,
}


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_chunks_that_are_wrong_reach_no_backend_and_hide_nothing(route: Any, name: str) -> None:
    identifier = f"hidden-{uuid.uuid4().hex}"
    head = route.request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    said = route.speak(head + BROKEN_CHUNKS[name] + hidden(route.stack, identifier))
    assert said.count(b"HTTP/1.1 ") <= 1
    assert said == b"" or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    see_the_end(route)
    assert identifier not in ids(route.stack)
    assert len([path for path, _, _ in route.stack.fake.requests if path == CHAT]) == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SORRY)
NO_HTTP: dict[str, bytes] = {
    "a greeting": b"SSH-2.0-OpenSSH_9.2\r\n\r\ncanary",
    "almost": b"HTTQ/1.1 200 OK\r\n\r\ncanary",
    "an alert of TLS": bytes.fromhex("15030100020246") + b"\r\n\r\ncanary",
    "no status": b"HTTP/1.1 OK\r\n\r\ncanary",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\ncanary",
    "a space before a colon": HEAD + b"X-Canary : canary\r\n" + LENGTH + b"\r\n" + SORRY,
    "a zero byte": HEAD + b"X-Canary: a\0canary\r\n" + LENGTH + b"\r\n" + SORRY,
    "a bare return": HEAD + b"X-Canary: a\rX-Evil: canary\r\n" + LENGTH + b"\r\n" + SORRY,
    "a field of 100 KB": HEAD + b"X-Canary: " + b"canary" * 17_000 + b"\r\n" + LENGTH + b"\r\n" + SORRY,
    "fields without end": HEAD + b"X-Canary: canary\r\n" * 6_000,
    "a line without end": b"HTTP/1.1 200 " + b"canary" * 17_000,
    "another protocol from here on": b"HTTP/1.1 101 Hop\r\nUpgrade: canary\r\nConnection: upgrade\r\n\r\ncanary",
    "a status of no kind": b"HTTP/1.1 999 Canary\r\nConnection: close\r\nContent-Length: 6\r\n\r\ncanary",
}


@pytest.mark.parametrize("then", ["close", "hold"])
@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_never_reaches_a_client(route: Any, kit: Any, name: str, then: Any) -> None:
    identifier, raw = uuid.uuid4().hex, route.stack.raw
    raw.tell(NO_HTTP[name], then)
    said = route.speak(route.request({"model": "impatient", "messages": HELLO}, identifier))
    assert b"canary" not in said.lower()
    if said or route.delivery == "inline":  # nginx takes some of it for an answer, and can only hang up then
        answer = kit.Answer.read(said)
        assert answer.whole
        assert (answer.status, set(answer.json())) in ((502, {"error"}), (504, {"error"}))
    line = route.stack.logged(identifier)
    assert (line["completed"], line["aborted"], line["level"]) == (False, False, "error")
    if then == "hold":
        kit.until(raw.closed_early.is_set, "the close of the backend's connection")


ODD_HEADS: dict[str, bytes] = {
    "a field without a colon": HEAD + b"odd\r\n" + LENGTH + b"\r\n" + SORRY + b"canary",
    "two lengths": HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + SORRY + b"canary",
    "a length and chunks": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(SORRY) + END + b"canary",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n" + SORRY,
    "a length of letters": HEAD + b"Content-Length: abc\r\n\r\n" + SORRY,
    "an unknown coding": HEAD + b"Transfer-Encoding: abc\r\n\r\n" + SORRY,
    "chunks that are none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SORRY,
    "a chunk of any size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + SORRY,
}
"""What clients of HTTP may take for an answer, or not: in any case for one."""


@pytest.mark.parametrize("then", ["close", "hold"])
@pytest.mark.parametrize("name", ODD_HEADS)
def test_an_odd_answer_is_one_answer_or_none(route: Any, name: str, then: Any) -> None:
    identifier, raw = uuid.uuid4().hex, route.stack.raw
    raw.tell(ODD_HEADS[name], then)
    said = route.speak(route.request({"model": "impatient", "messages": HELLO}, identifier))
    assert said.count(b"HTTP/1.1 ") == 1 or (said == b"" and route.delivery == "offload")
    assert b"canary" not in said
    line = route.stack.logged(identifier)
    assert line["http.response.status_code"] == int(said[9:12] or 200)


@pytest.mark.parametrize("name", ["a space before a colon", "a field of 100 KB"])
def test_a_backend_that_speaks_no_http_is_stood_in_for(route: Any, name: str) -> None:
    route.stack.raw.tell(NO_HTTP[name], "close")
    answer = route.post({"model": "raw_rescued", "messages": HELLO})
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "hi")


def test_what_a_backend_says_behind_its_answer_is_nobodys(route: Any, kit: Any) -> None:
    raw = route.stack.raw
    raw.tell(kit.whole() + kit.whole(b'{"canary": 1}'))
    answers = [route.post({"model": "raw", "messages": HELLO, "user": str(number)}) for number in range(4)]
    assert all(b"canary" not in answer.body for answer in answers)
    assert [(answer.status, answer.whole) for answer in answers] == [(200, True)] * 4
    assert len(raw.requests) == 4


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: canary\r\n\r\n" * 3], ids=["100", "103"]
)
def test_answers_before_the_answer_are_no_answer(route: Any, kit: Any, head: bytes) -> None:
    route.stack.raw.tell(head + kit.whole(), "close")
    said = route.speak(route.request({"model": "raw", "messages": HELLO}))
    assert b"canary" not in said
    if said or route.delivery == "inline":  # nginx takes it for the answer, and can only hang up then
        answer = kit.Answer.read(said)
        assert (answer.status, answer.whole) == (200, True)


def test_a_backend_may_speak_http_1_0(route: Any, kit: Any) -> None:
    route.stack.raw.tell(kit.whole().replace(b"HTTP/1.1", b"HTTP/1.0"), "close")
    answer = route.post({"model": "raw", "messages": HELLO})
    assert (answer.status, answer.whole, answer.json()["object"]) == (200, True, "chat.completion")
