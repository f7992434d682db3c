"""Backends that fail before their first byte: the next one is asked, whoever asks, and the caller hears the truth."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

HELLO = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
SORRY = b'{"error":{"message":"sorry","type":"server_error","param":null,"code":null}}'
FAILURES: dict[str, tuple[int, str]] = {
    "401 Unauthorized": (502, "upstream_auth"),
    "403 Forbidden": (502, "upstream_auth"),
    "429 Too Many Requests": (429, "upstream_rate_limited"),
    "500 Internal Server Error": (502, "upstream_error"),
    "502 Bad Gateway": (502, "upstream_error"),
    "503 Service Unavailable": (503, "unavailable"),
    "504 Gateway Timeout": (502, "upstream_error"),
    "507 Insufficient Storage": (502, "upstream_error"),
    "529 Overloaded": (502, "upstream_error"),
    "302 Found": (502, "upstream_error"),
}
"""How a backend may answer, and what the caller is told if there is no other."""
BREAKS = ["close", "reset"]


def ask(route: Any, model: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The answer, and what the log says of it."""
    identifier = uuid.uuid4().hex
    answer = route.post({"model": model, "messages": HELLO, **fields}, identifier)
    assert answer.whole
    return answer, route.stack.logged(identifier)


def account(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["http.response.status_code"], line["completed"], line["aborted"], line["target"], line["attempts"]


def asked(stack: Any) -> list[bytes]:
    """The bodies that the second backend got."""
    return [body for path, _, body in stack.fake.requests if path == CHAT]


@pytest.mark.parametrize("stream", [False, True])
def test_an_unreachable_backend_is_stood_in_for(route: Any, stream: bool) -> None:
    answer, line = ask(route, "rescued", stream=stream)
    assert answer.status == 200
    assert account(line) == (200, True, False, "fake", 2)
    assert line["delivery"] == route.delivery


@pytest.mark.parametrize("then", BREAKS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_breaks_off_before_its_first_byte_is_stood_in_for(route: Any, then: Any, stream: bool) -> None:
    route.stack.raw.tell(b"", then)
    answer, line = ask(route, "raw_rescued", stream=stream)
    assert answer.status == 200
    assert account(line) == (200, True, False, "fake", 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", FAILURES)
def test_a_backend_that_fails_is_stood_in_for(route: Any, kit: Any, status: str, stream: bool) -> None:
    route.stack.raw.tell(kit.whole(SORRY, status, "application/json", "Location: http://127.0.0.1:1/"))
    answer, line = ask(route, "raw_rescued", stream=stream)
    assert answer.status == 200
    assert account(line) == (200, True, False, "fake", 2)


@pytest.mark.parametrize("status", FAILURES)
def test_each_backend_is_asked_once_and_for_the_same(route: Any, kit: Any, status: str) -> None:
    route.stack.raw.tell(kit.whole(SORRY, status))
    ask(route, "raw_rescued")
    expected = {"model": "raw_rescued", "messages": HELLO}
    assert [json.loads(body) for _, _, body in route.stack.raw.requests] == [expected]
    assert [json.loads(body) for body in asked(route.stack)] == [{**expected, "model": "fake-model"}]


@pytest.mark.parametrize("status", FAILURES)
def test_the_caller_is_told_of_a_backend_that_has_no_other(route: Any, kit: Any, status: str) -> None:
    route.stack.raw.tell(kit.whole(SORRY, status))
    answer, line = ask(route, "raw")
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == FAILURES[status]
    assert set(error) == {"message", "type", "param", "code"}
    assert "sorry" not in error["message"]
    assert account(line) == (answer.status, False, False, "raw", 1)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_the_caller_is_told_when_to_come_back(route: Any, kit: Any, status: str) -> None:
    route.stack.raw.tell(kit.whole(SORRY, status, "application/json", "Retry-After: 17"))
    answer, _ = ask(route, "raw")
    assert answer.headers.get_list("retry-after") == ["17"]


def test_a_failed_backends_wait_is_not_told_with_anothers_answer(route: Any, kit: Any) -> None:
    route.stack.raw.tell(kit.whole(SORRY, "429 Too Many Requests", "application/json", "Retry-After: 17"))
    answer, _ = ask(route, "raw_rescued")
    assert "retry-after" not in answer.headers


def test_of_several_failures_the_last_one_is_told(route: Any, kit: Any) -> None:
    route.stack.raw.tell(kit.whole(SORRY, "429 Too Many Requests", "application/json", "Retry-After: 17"))
    route.stack.fake.status = 503
    answer, line = ask(route, "raw_rescued")
    assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "retry-after" not in answer.headers
    assert account(line) == (503, False, False, "fake", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_reachable_is_503(route: Any, stream: bool) -> None:
    answer, line = ask(route, "lost", stream=stream)
    assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
    assert account(line) == (503, False, False, "gone", 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_backend_that_is_silent_for_too_long_is_504(route: Any, kit: Any, stream: bool) -> None:
    route.stack.raw.tell(b"", "hold")
    answer, line = ask(route, "impatient", stream=stream)
    assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert account(line) == (504, False, False, "impatient", 1)
    kit.until(route.stack.raw.closed_early.is_set, "the close of the backend's connection")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "409 Conflict", "413 Too Large", "422 Nope"])
def test_an_error_that_is_the_callers_is_passed_on_untouched(route: Any, kit: Any, status: str, stream: bool) -> None:
    words = b'{"error": {"message": "gr\xc3\xbc\xc3\x9fe",  "type":"invalid_request_error","code":"mine"}, "more": 1}\n'
    route.stack.raw.tell(kit.whole(words, status, "application/json", "X-Mine: kept"))
    answer, line = ask(route, "raw_rescued", stream=stream)
    assert (answer.status, answer.body, answer.headers["x-mine"]) == (int(status[:3]), words, "kept")
    assert account(line) == (answer.status, True, False, "raw", 1)
    assert asked(route.stack) == []


def test_a_backend_that_was_kept_waiting_is_not_the_end_of_the_connection(route: Any, kit: Any) -> None:
    """nginx cannot try again after a 408, which it would not answer at all: there it is the caller's."""
    route.stack.raw.tell(kit.whole(SORRY, "408 Request Timeout"))
    answer, line = ask(route, "raw_rescued")
    expected = (200, "fake", 2) if route.delivery == "inline" else (408, "raw", 1)
    assert (answer.status, line["target"], line["attempts"]) == expected


def test_more_backends_than_nginx_may_be_sent_to_are_all_asked(own_stack: Any, kit: Any) -> None:
    with kit.raw_backend() as raw:
        backends = "".join(f'b{n} = {{ provider = "openai", base_url = "{raw.url}" }}\n' for n in range(7))
        names = ", ".join(f'"b{number}"' for number in range(7))
        many = f"many = {{ targets = [{names}], retry = {{ rounds = 1 }} }}"
        with own_stack(backends=backends, models=many) as stack:
            stack.warm_up()
            raw.tell(kit.whole(SORRY, "500 Internal Server Error"))
            answer, line = ask(stack.route("nginx"), "many")
    assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert account(line) == (502, False, False, "b6", 7)
    assert len(raw.requests) == 7
    assert line["delivery_reason"] == "nginx has been asked often enough"


def test_a_large_body_is_sent_whole_to_the_second_backend(route: Any, kit: Any) -> None:
    route.stack.raw.tell(kit.whole(SORRY, "500 Internal Server Error"))
    text = "x" * 3_000_000
    answer, line = ask(route, "raw_rescued", user=text)
    assert answer.status == 200
    assert account(line) == (200, True, False, "fake", 2)
    assert [json.loads(body)["user"] for body in asked(route.stack)] == [text]
