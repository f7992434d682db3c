"""A backend that fails before its first byte: nginx asks the core again, and goes on as if it were the first try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

REFUSED = "http://127.0.0.1:9/v1"  # the discard port: nobody listens


@pytest.fixture(scope="module")
def two(binary: Any, staged: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A stage with a backend that refuses connections besides the good one."""
    with staged(tmp_path_factory.mktemp("again"), binary, refused={"provider": "openai", "base_url": REFUSED}) as stage:
        yield stage


def handed(two: Any, http: Any, first: dict[str, Any], second: dict[str, Any]) -> Any:
    """One request that is handed to a backend that refuses, then to the good one."""
    two.script([http.answer(b'{"ok":true}')], two.told("refused", **first), two.told("near", **second))
    result = two.send(two.request(b'{"a":1}'))
    assert (result.got.status, result.got.body) == (200, b'{"ok":true}')
    return two.backend.arrived[-1]


def test_the_core_is_told_how_it_failed_and_gets_no_body(two: Any, http: Any) -> None:
    handed(two, http, {}, {})
    first, again = two.core.arrived[-2:]
    assert (again.method, again.target, again.body) == ("POST", "/.headrace/again", b"")
    status, connect, answered = again.headers["x-headrace-failed"].split("|")
    assert status.split(" ")[-1] == "502" and connect.split(" ")[-1] == answered.split(" ")[-1] == "-"
    for name in ("x-headrace-mark", "x-headrace-exchange"):
        assert first.headers[name] == again.headers[name]


def test_the_second_backend_gets_what_the_core_says_of_it(two: Any, http: Any) -> None:
    said: list[dict[str, Any]] = [
        {
            "uri": f"/{name}/chat/completions",
            "edits": [[1, 1, f'"{name}":1,']],
            "more": {
                "X-Headrace-Authorization": f"Bearer {name}",
                "X-Headrace-Send-User-Agent": name,
                "X-Headrace-Send-Content-Type": f"application/{name}",
            },
        }
        for name in ("first", "second")
    ]
    arrived = handed(two, http, *said)
    assert arrived.target == "/second/chat/completions"
    assert arrived.headers["authorization"] == "Bearer second"
    assert arrived.headers["user-agent"] == "second"
    assert arrived.headers["content-type"] == "application/second"


def test_each_backends_body_has_its_own_edits(two: Any, http: Any) -> None:
    names = ("first", "second", "third")
    said = [two.told("refused", edits=[[1, 1, f'"{name}":1,']]) for name in names]
    two.script([http.answer(b"{}")], *said, two.told("near", edits=[[1, 1, '"fourth":1,']]))
    assert two.send(two.request(b'{"a":1}')).got.status == 200
    arrived = two.backend.arrived[-1]
    assert arrived.body == b'{"fourth":1,"a":1}'
    assert arrived.headers["content-length"] == str(len(arrived.body))


def test_what_was_said_of_the_first_backend_alone_is_not_sent_to_the_second(two: Any, http: Any) -> None:
    first = {"X-Headrace-Authorization": "Bearer first", "X-Headrace-Send-User-Agent": "first"}
    arrived = handed(two, http, {"edits": [[1, 1, '"first":1,']], "more": first}, {})
    assert "authorization" not in arrived.headers and "user-agent" not in arrived.headers
    assert arrived.body == b'{"a":1}'


def test_the_watch_is_that_of_the_second_backend(two: Any, http: Any) -> None:
    pieces = http.chunked(b'data: {"choices":[1]}\n\n', b'data: {"choices":[],"usage":{}}\n\n', b"data: [DONE]\n\n")
    two.script(pieces, two.told("refused", watch="usage"), two.told("near", watch="hide"))
    result = two.send(two.request())
    assert result.got.body == b'data: {"choices":[1]}\n\ndata: [DONE]\n\n'
    assert result.watched.events == 3
    two.script(pieces, two.told("refused", watch="hide"), two.told("near"))
    assert two.send(two.request()).report.watched == ()


@pytest.mark.parametrize("status", [301, 307, 401, 403, 407, 429, 500, 502, 503, 504, 529])
def test_a_status_that_another_backend_might_better_is_taken_to_the_core(two: Any, http: Any, status: int) -> None:
    failing = http.answer(b'{"said":"backend"}', status, more={"Retry-After": "7"})
    two.script([failing], two.told(), http.answer(b'{"said":"core"}', 418))
    got = two.receive(two.request())
    again = two.core.arrived[-1]
    assert again.headers["x-headrace-failed"].split("|")[0].split(" ")[-1] == str(status)
    assert again.headers["x-headrace-retry-after"] == "7"
    assert (got.status, got.body) == (418, b'{"said":"core"}')


@pytest.mark.parametrize("status", [200, 201, 400, 404, 408, 413, 422, 451])
def test_any_other_status_is_the_clients(two: Any, http: Any, status: int) -> None:
    result = two.ask([http.answer(b'{"said":"backend"}', status)])
    assert (result.got.status, result.got.body) == (status, b'{"said":"backend"}')
    assert result.report.status == status and result.report.completed


def test_a_backend_that_closes_without_an_answer_was_reached(two: Any, http: Any) -> None:
    two.script(["close"], two.told(), http.answer(b"{}", 418))
    two.receive(two.request())
    status, connect, answered = (
        each.split(" ")[-1] for each in two.core.arrived[-1].headers["x-headrace-failed"].split("|")
    )
    assert (status, connect != "-", answered) == ("502", True, "-")
