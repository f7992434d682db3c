"""What nginx tells a backend, and what of its answer reaches the client."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import front
from headrace.delivery import NOT_OURS
from headrace_nginx.handover import EDIT_BYTES

CLIENTS = {"Accept": "a/b", "OpenAI-Beta": "x=1", "traceparent": "00-1", "tracestate": "a=1", "User-Agent": "client/1"}


def asked(stage: Any, http: Any, headers: dict[str, str], **told: Any) -> dict[str, str]:
    """The headers that reach the backend."""
    stage.script([http.answer(b"{}")], stage.told(**told))
    stage.send(stage.request(headers=headers))
    found: dict[str, str] = stage.backend.arrived[-1].headers
    return found


def test_the_clients_own_headers_that_may_pass_do_and_no_others(stage: Any, http: Any) -> None:
    secret = {
        "Authorization": "Bearer sk-client",
        "X-API-Key": "sk-client",
        "Cookie": "sk-client",
        "OpenAI-Project": "p",
    }
    found = asked(stage, http, {**CLIENTS, **secret, "X-Forwarded-For": "1.2.3.4", "X-Request-ID": "mine"})
    assert {name: found[name.lower()] for name in CLIENTS} == CLIENTS
    assert set(found) - {name.lower() for name in CLIENTS} == {
        "host",
        "content-type",
        "content-length",
        "accept-encoding",
        "x-request-id",
    }
    assert (found["host"], found["accept-encoding"], found["x-request-id"]) == ("near.test", "identity", "mine")


def test_what_the_core_says_of_headers_goes_before_what_the_client_said(stage: Any, http: Any) -> None:
    more = {f"X-Headrace-Send-{name}": "core" for name in CLIENTS} | {"X-Headrace-Authorization": "Bearer k"}
    found = asked(stage, http, CLIENTS, more=more)
    assert {found[name.lower()] for name in CLIENTS} == {"core"}
    assert found["authorization"] == "Bearer k"


def test_a_client_cannot_say_what_the_core_says(stage: Any, http: Any) -> None:
    claims = {"X-Headrace-Send-User-Agent": "evil", "X-Headrace-Authorization": "evil", "X-Headrace-Host": "evil"}
    found = asked(stage, http, {**claims, "X-Headrace-Mark": "evil", "X-Headrace-Exchange": "evil"})
    assert "evil" not in found.values()
    core = stage.core.arrived[-1].headers
    assert core["x-headrace-mark"] != "evil" and core["x-headrace-exchange"] != "evil"


def test_a_body_without_a_type_is_json(stage: Any, http: Any) -> None:
    stage.script([http.answer(b"{}")], stage.told())
    stage.send(stage.request().replace(b"Content-Type: application/json\r\n", b""))
    assert stage.backend.arrived[-1].headers["content-type"] == "application/json"


def test_the_path_is_the_cores(stage: Any, http: Any) -> None:
    for path in ("/v1/chat/completions", "/a%20b/v1/%2e%2e/x", "/v1/a:b@c,d;e=f"):
        asked(stage, http, {}, uri=path)
        assert stage.backend.arrived[-1].target == path


def test_headers_of_the_backend_that_are_not_its_to_say_end_here(stage: Any, http: Any) -> None:
    names = {name.decode() for name in NOT_OURS} - {"transfer-encoding", "content-length", "trailer", "te", "upgrade"}
    names |= {"x-accel-redirect", "x-accel-expires", "access-control-allow-origin", "x-headrace-report", "x-cache"}
    answer = http.answer(b"{}", more={**dict.fromkeys(sorted(names), "evil"), "OpenAI-Version": "2020", "X-Kept": "1"})
    got = stage.ask([answer], "usage").got
    assert "evil" not in [value for _, value in got.headers], got.headers
    assert (got.header("OpenAI-Version"), got.header("X-Kept")) == ("2020", "1")
    assert got.body == b"{}"


def test_what_the_core_adds_to_an_answer_is_added(stage: Any, http: Any) -> None:
    more = {name: f"value of {name}" for name in front.CARRIED}
    stage.script([http.answer(b"{}", 400)], stage.told(more=more))
    got = stage.send(stage.request(headers={"X-Request-ID": "mine"})).got
    assert {name: got.header(name) for name in front.CARRIED} == more
    assert got.header("X-Request-ID") == "mine"
    assert got.header("X-Content-Type-Options") == "nosniff"
    assert not [name for name, _ in got.headers if name.startswith(("x-headrace", "x-accel"))]


def test_what_the_core_says_to_nginx_is_not_shown_when_nginx_delivers_nothing(stage: Any, http: Any) -> None:
    stage.core.script = lambda _: [http.answer(b"{}", more={"X-Headrace-Report": "1"})]
    result = stage.send(stage.request())
    assert result.got.header("X-Headrace-Report") is None
    assert result.report.watched == () and result.report.status == 200


@pytest.mark.parametrize("body", [b"{}", b"x" * EDIT_BYTES])
def test_a_body_that_nginx_can_edit_is_in_its_memory(stage: Any, http: Any, body: bytes) -> None:
    stage.ask([http.answer(b"{}")], body=body)
    assert "x-headrace-spooled" not in stage.core.arrived[-1].headers


def test_the_core_is_told_of_a_body_that_nginx_cannot_edit(stage: Any, http: Any) -> None:
    body = b"x" * (2 * EDIT_BYTES)
    stage.ask([http.answer(b"{}")], body=body)
    assert stage.core.arrived[-1].headers["x-headrace-spooled"]
    assert stage.core.arrived[-1].body == stage.backend.arrived[-1].body == body


@pytest.mark.parametrize("size", [1, 100, 5000])
@pytest.mark.parametrize("length", [100, 20_000, 120_000])
def test_a_body_in_chunks_is_edited_or_said_to_be_elsewhere(stage: Any, http: Any, length: int, size: int) -> None:
    body = b"{" + b"x" * (length - 2) + b"}"
    parts = [body[at : at + size] for at in range(0, length, size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    edits = [[1, 1, "a"]]
    stage.core.script = lambda asked: [stage.told(edits=None if "x-headrace-spooled" in asked.headers else edits)]
    stage.backend.script = lambda _: [http.answer(b"{}")]
    stage.send(head + chunks)
    core, backend = stage.core.arrived[-1], stage.backend.arrived[-1]
    assert core.body == body
    assert backend.body == (body if "x-headrace-spooled" in core.headers else b"{a" + body[1:])


def test_a_connection_to_a_backend_is_used_again(stage: Any, http: Any) -> None:
    for pieces in ([http.answer(b"{}")], http.chunked(b"data: [DONE]\n\n")):
        first = stage.ask(pieces, "usage") and stage.backend.arrived[-1].connection
        assert stage.ask(pieces, "hide") and stage.backend.arrived[-1].connection == first


def test_a_request_goes_to_the_backend_once(stage: Any, http: Any) -> None:
    before = len(stage.backend.arrived)
    stage.script(["close"], stage.told(), http.answer(b"{}", 418))
    assert stage.receive(stage.request()).status == 418
    assert len(stage.backend.arrived) == before + 1
