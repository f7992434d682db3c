"""What passes through nginx: protocols, streams, headers."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from headrace_nginx.proxying import INTERNAL_HEADERS


def test_http2_is_served_to_a_client_that_trusts_the_development_authority(front: Any) -> None:
    done = front.curl("--http2", "--write-out", "\n%{http_version} %{http_code}", front.url("/echo"))
    assert done.stdout.splitlines()[-1] == "2 200", done.stderr


def test_http1_is_served_to_a_client_that_offers_nothing_else(front: Any) -> None:
    done = front.curl("--http1.1", "--write-out", "\n%{http_version} %{http_code}", front.url("/echo"))
    assert done.stdout.splitlines()[-1] == "1.1 200", done.stderr


def test_tls_1_1_is_refused(front: Any) -> None:
    done = front.curl("--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT:@SECLEVEL=0", front.url("/echo"))
    assert done.returncode != 0


def test_a_body_arrives_whole_also_when_it_was_sent_in_chunks_or_spooled(front: Any) -> None:
    body = b"x" * 250_000  # more than nginx keeps in memory
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = front.raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).json()
    whole = front.ask(method="POST", body=body).json()
    for arrived in (chunked, whole):
        assert arrived["size"] == 250_000
        assert ["Content-Length", "250000"] in arrived["headers"]


def test_a_streams_first_event_arrives_while_the_core_still_holds_the_second(front: Any, tools: Any) -> None:
    front.core.release.clear()
    with front.connect() as connection:
        connection.sendall(
            b"POST /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        seen = b""
        while b"data: 1" not in seen:
            seen += connection.recv(65536)
        assert b"data: 2" not in seen
        front.core.release.set()
        assert b"data: 2" in tools.read_all(connection)


def test_a_stream_over_http2_is_not_held_back_either(front: Any, tools: Any) -> None:
    front.core.release.clear()
    command = ["curl", "--silent", "--no-buffer", "--http2", "--cacert", str(front.ca), front.url("/stream")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        assert curl.stdout.readline() == b"data: 1\n"
        front.core.release.set()
        assert b"data: 2" in curl.stdout.read()


def test_a_client_that_leaves_closes_the_cores_connection_within_a_quarter_second(front: Any, tools: Any) -> None:
    spent = []
    for _ in range(3):
        front.core.left.clear()
        before = len(front.core.arrived)
        connection = front.connect()
        connection.sendall(b"POST /hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        tools.until(lambda before=before: front.core.arrived[before:] == ["/hang"], "the request's arrival")
        gone = time.monotonic()
        connection.close()
        tools.until(lambda: front.core.left, "the close of the core's connection")
        spent.append(front.core.left[0] - gone)
    assert min(spent) < 0.25


def test_a_client_cannot_say_who_it_is(front: Any) -> None:
    claims = {
        "X-Real-IP": "1.2.3.4",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Proto": "gopher",
        "Forwarded": "for=1.2.3.4",
        "True-Client-IP": "1.2.3.4",
        "X_Real_IP": "1.2.3.4",
    }
    arrived = front.ask(headers=claims).json()["headers"]
    found = {name.lower(): value for name, value in arrived}
    assert found["x-real-ip"] == found["x-forwarded-for"] == "127.0.0.1"
    assert found["x-forwarded-proto"] == "https"
    assert "1.2.3.4" not in json.dumps(arrived)


def test_what_steers_nginx_and_the_core_is_taken_from_the_clients_headers(front: Any) -> None:
    names = (*INTERNAL_HEADERS, "Connection")
    arrived = front.ask(headers=dict.fromkeys(names[:-1], "x")).json()["headers"]
    assert not {name.lower() for name in names} & {name.lower() for name, _ in arrived}


def test_a_redirect_that_the_cores_answer_asks_for_is_not_obeyed(front: Any) -> None:
    before = len(front.core.arrived)
    answer = front.ask("/accel")
    assert (answer.status, answer.json()) == (200, {"kept": True})
    assert front.core.arrived[before:] == ["/accel"]


def test_the_clients_credentials_and_host_reach_the_core(front: Any) -> None:
    arrived = front.ask(headers={"Authorization": "Bearer k", "X-API-Key": "k", "OpenAI-Organization": "o"}).json()
    found = {name.lower(): value for name, value in arrived["headers"]}
    assert (found["authorization"], found["x-api-key"], found["openai-organization"]) == ("Bearer k", "k", "o")
    assert found["host"] == "localhost"


def test_a_request_keeps_a_plain_id_and_gets_one_otherwise(front: Any) -> None:
    def arrived(headers: dict[str, str]) -> str:
        found = dict(map(tuple, front.ask(headers=headers).json()["headers"]))
        return str(found["X-Request-ID"])

    assert arrived({"X-Request-ID": "abc-1"}) == "abc-1"
    assert len(arrived({})) == len(arrived({"X-Request-ID": "a b"})) == 32


def test_two_lengths_for_one_body_are_refused(front: Any) -> None:
    before = len(front.core.arrived)
    both = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    twice = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"
    odd = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
    assert front.raw(both).status == front.raw(twice).status == 400
    assert front.raw(odd).status in (400, 501)
    assert front.core.arrived[before:] == []


def test_security_headers_are_added_and_the_cores_own_are_kept(front: Any) -> None:
    plain, own = front.ask(), front.ask("/error")
    assert plain.header("X-Content-Type-Options") == own.header("X-Content-Type-Options") == "nosniff"
    assert (plain.header("X-Frame-Options"), own.header("X-Frame-Options")) == ("DENY", "SAMEORIGIN")
    assert plain.header("Referrer-Policy") == "no-referrer"
    assert plain.header("Server") == "nginx"
    assert plain.header("Strict-Transport-Security") is None  # a development certificate


def test_the_access_log_is_json_and_holds_no_secret(front: Any, tools: Any) -> None:
    secrets = {"Authorization": "Bearer sk-secret-1", "X-API-Key": "sk-secret-2", "Cookie": "s=sk-secret-3"}
    front.ask("/echo?api_key=sk-secret-4", "POST", {**secrets, "X-Request-ID": "logged-1"})
    front.ask("/nowhere#sk-secret-5", "TRACE", secrets)
    line = tools.until(lambda: [line for line in front.log() if line["request_id"] == "logged-1"], "the log line")[0]
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/echo", 200, "127.0.0.1")
    assert (line["completed"], line["protocol"], line["tls"]) == (True, "HTTP/1.1", "TLSv1.3")
    assert isinstance(line["duration"], float) and isinstance(line["upstream_duration"], float)
    assert line["bytes"] > 0 and line["upstream_status"] == 200
    tools.until(lambda: [line for line in front.log() if line["method"] == "TRACE"], "the second log line")
    for file in front.service.layout.state.rglob("*"):
        if file.is_file():
            assert b"sk-secret" not in file.read_bytes(), file
