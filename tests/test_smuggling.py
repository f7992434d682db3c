"""What a client or a backend may say to steer the other side, or to slip a second request in: it gets them nowhere."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from headrace.testing import CHUNK, COMPLETION, DONE

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
ASK = {"model": "fake", "messages": HELLO}
STREAM = CHUNK % 0 + DONE

INTERNAL = {
    "X-Accel-Redirect": "@headrace_again",
    "X-Accel-Limit-Rate": "1",
    "X-Headrace-Mark": "canary 1",
    "X-Headrace-Exchange": "0" * 32,
    "X-Headrace-Group": "canary",
    "X-Headrace-Uri": "/canary",
    "X-Headrace-Host": "canary",
    "X-Headrace-Authorization": "Bearer canary",
    "X-Headrace-Watch": "hide",
    "X-Headrace-Edits": '[[0,1,"canary"]]',
    "X-Headrace-Failed": "500|-|-",
    "X-Headrace-Report": "1",
    "X-Headrace-Retry-After": "canary",
    "X-Headrace-Send-User-Agent": "canary",
    "X-Headrace-Spooled": "canary",
}
"""What nginx and the core tell each other in headers."""
SPELLINGS: dict[str, Callable[[str, str], list[str]]] = {
    "as it is": lambda name, value: [f"{name}: {value}"],
    "in lower case": lambda name, value: [f"{name.lower()}: {value}"],
    "in capitals": lambda name, value: [f"{name.upper()}:{value}"],
    "with underscores": lambda name, value: [f"{name.replace('-', '_')}: {value}"],
    "twice": lambda name, value: [f"{name}: {value}", f"{name}: {value}"],
    "half with underscores": lambda name, value: [f"{name.replace('-', '_', 1)}: {value}", f"{name}: {value}"],
    "named by Connection": lambda name, value: [f"Connection: close, {name}", f"{name}: {value}"],
}


def ask(route: Any, body: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The answer, and what the log says of it."""
    identifier = uuid.uuid4().hex
    answer = route.post(body, identifier, **more)
    return answer, route.stack.logged(identifier)


def reached(stack: Any) -> list[tuple[str, dict[str, str], bytes]]:
    """What reached the fake backend, but for questions after its health."""
    return [each for each in stack.fake.requests if not each[0].endswith("/models")]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", INTERNAL)
def test_a_client_that_speaks_as_nginx_or_the_core_is_not_heard(front: Any, name: str, spelling: str) -> None:
    answer, line = ask(front, ASK, headers=SPELLINGS[spelling](name, INTERNAL[name]))
    assert (answer.status, answer.body, answer.whole) == (200, COMPLETION, True)
    assert (line["delivery"], line["target"], line["attempts"]) == (front.delivery, "fake", 1)
    assert "canary" not in repr(answer.headers)
    ((path, headers, body),) = reached(front.stack)
    assert (path, json.loads(body)["messages"]) == (CHAT, HELLO)
    assert [each for each in headers if each.replace("_", "-").startswith(("x-headrace", "x-accel"))] == []
    assert "canary" not in repr(headers)


def test_all_of_them_at_once_get_nowhere_either(route: Any) -> None:
    answer, line = ask(route, ASK, headers=[f"{name}: {value}" for name, value in INTERNAL.items()])
    assert (answer.status, answer.body, line["delivery"]) == (200, COMPLETION, route.delivery)
    assert "canary" not in repr(reached(route.stack))


AGAIN = (
    *("/.headrace/again", "/.headrace/again?x=1", "/.headrace%2fagain", "/.headrace/%61gain", "//.headrace/again"),
    *("/v1/../.headrace/again", "/./.headrace/again", "/.headrace/again/", "/.headrace/AGAIN", "/@headrace_again"),
    "/.headrace",
)


@pytest.mark.parametrize("method", [b"POST", b"GET", b"HEAD"])
@pytest.mark.parametrize("path", AGAIN)
def test_what_only_nginx_may_ask_is_not_there_for_clients(front: Any, kit: Any, path: str, method: bytes) -> None:
    more = [f"{name}: {value}" for name, value in INTERNAL.items()]
    request = front.request(b"", path=path, headers=more)
    answer = kit.Answer.read(front.speak(request.replace(b"POST", method, 1)))
    assert answer.status == 404
    if method != b"HEAD":
        error = answer.json()["error"]
        assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, "not_found")


def test_a_process_that_finds_the_cores_socket_cannot_have_requests_delivered_elsewhere(stack: Any) -> None:
    more = [f"{name}: {value}" for name, value in INTERNAL.items()]
    answer, line = ask(stack.route("core"), ASK, headers=more)
    assert (answer.body, line["delivery"]) == (COMPLETION, "inline")
    assert "x-accel-redirect" not in answer.headers


STEERING = {
    "X-Accel-Redirect": "@headrace_again",
    "X-Accel-Buffering": "yes",
    "X-Accel-Limit-Rate": "1",
    "X-Accel-Expires": "60",
    "X-Accel-Charset": "koi8-r",
    "X-Headrace-Report": "1",
    "X-Headrace-Group": "canary",
    "X-Headrace-Watch": "hide",
    "X-Headrace-Uri": "/canary",
    "Set-Cookie": "canary=1",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "canary",
    "Access-Control-Max-Age": "canary",
    "Clear-Site-Data": '"*"',
    "WWW-Authenticate": "Basic canary",
    "Proxy-Authenticate": "Basic canary",
    "Strict-Transport-Security": "max-age=1",
    "Alt-Svc": 'h3=":1"',
    "Refresh": "0; url=http://canary/",
    "Via": "canary",
    "Server": "canary",
    "X-Request-ID": "canary",
    "OpenAI-Organization": "canary",
    "Proxy-Connection": "canary",
    "Keep-Alive": "canary",
    "Trailer": "canary",
    "Upgrade": "canary",
}
"""What a backend must not tell a client, or nginx."""
OWN = ("server", "x-request-id")


def steering() -> tuple[str, ...]:
    return tuple(f"{name}: {value}" for name, value in STEERING.items())


def check_unsteered(answer: Any) -> None:
    names = {name.lower() for name in answer.headers}
    assert names & {name.lower() for name in STEERING} <= set(OWN)
    assert "canary" not in repr(answer.headers)


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_a_backend_steers_nobody_with_a_whole_answer(route: Any, kit: Any, status: str) -> None:
    route.stack.raw.tell(kit.whole(COMPLETION, status, "application/json", *steering()))
    answer, line = ask(route, {**ASK, "model": "raw"})
    assert (answer.status, answer.body, answer.whole) == (int(status[:3]), COMPLETION, True)
    assert (line["delivery"], line["completed"]) == (route.delivery, True)
    check_unsteered(answer)
    assert len(route.stack.raw.requests) == 1


def test_a_backend_steers_nobody_with_a_stream(route: Any, kit: Any) -> None:
    route.stack.raw.tell(kit.chunked(STREAM, headers=steering()))
    answer, line = ask(route, {**ASK, "model": "raw", "stream": True})
    assert (answer.status, answer.body, answer.whole) == (200, STREAM, True)
    assert (line["delivery"], line["completed"]) == (route.delivery, True)
    check_unsteered(answer)


@pytest.mark.parametrize("status", ["500 Oh", "429 Slow", "401 Who", "302 There"])
@pytest.mark.parametrize("model", ["raw", "raw_rescued"])
def test_a_backend_steers_nobody_with_a_failure(route: Any, kit: Any, model: str, status: str) -> None:
    route.stack.raw.tell(kit.whole(b"{}", status, "application/json", *steering(), "Location: /canary"))
    answer, line = ask(route, {**ASK, "model": model})
    assert answer.status in ((502, 429) if model == "raw" else (200,))
    assert line["attempts"] == (1 if model == "raw" else 2)
    check_unsteered(answer)
    assert b"canary" not in answer.body


@pytest.mark.parametrize("waiting", ["1\x01", "canary" * 1000, "1\t2", "Fri, 31 Dec 1999 23:59:59 GMT", "\xfc", '"'])
def test_no_retry_after_of_a_backend_breaks_an_answer(route: Any, kit: Any, waiting: str) -> None:
    route.stack.raw.tell(kit.whole(b"{}", "429 Slow", "application/json", f"Retry-After: {waiting}"))
    answer, _ = ask(route, {**ASK, "model": "raw"})
    assert answer.whole
    assert answer.json()["error"]["code"] in ("upstream_rate_limited", "upstream_error")


@pytest.mark.parametrize("name", ["User-Agent", "OpenAI-Beta", "Traceparent", "Accept", "Content-Type", "X-Other"])
@pytest.mark.parametrize(
    "value", ["$request_id ${headrace_mark} $$", "'; return 500; #", '"', "\\r\\nX-Evil: 1", "\xe4"]
)
def test_a_headers_value_is_never_read_as_more_than_that(
    route: Any, name: str, value: str, request: pytest.FixtureRequest
) -> None:
    if route.delivery == "inline" and not value.isascii() and name not in ("X-Other", "Content-Type"):
        reason = "the core's HTTP client encodes headers in UTF-8"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    answer, _ = ask(route, ASK, headers=[f"{name}: {value}"])
    assert answer.status == 200
    ((_, headers, _),) = reached(route.stack)
    assert "x-evil" not in headers
    if name not in ("X-Other", "Content-Type"):
        assert headers[name.lower()] == value


@pytest.mark.parametrize(
    "model", ["fake\r\nX-Evil: 1", "fake\x00", "@headrace_again", "$host", "../fake", "fake\u2028"]
)
def test_a_models_name_is_never_more_than_a_name(route: Any, model: str) -> None:
    answer, _ = ask(route, {**ASK, "model": model})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "x-evil" not in answer.headers
    assert reached(route.stack) == []


@pytest.mark.parametrize("given", ["a b", "a;b", "$request_id", "x" * 129, 'a"b', "a%0d%0ab", "\xe4", "a/b"])
def test_a_request_id_that_is_no_plain_word_is_replaced(route: Any, given: str) -> None:
    answer = route.post(ASK, headers=[f"X-Request-ID: {given}"])
    assert answer.status == 200
    (identifier,) = answer.headers.get_list("x-request-id")
    assert identifier.isalnum() and identifier.isascii()
    ((_, headers, _),) = reached(route.stack)
    assert headers["x-request-id"] == identifier
