"""Backends that do not speak HTTP as they should: nobody takes their answers for good ones."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("watch", ["", "usage", "hide", "end"])
@pytest.mark.parametrize(
    "said",
    [
        b"hello\r\n",
        b"HTTP/1.1 099 X\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 600 X\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nX: " + b"x" * 20_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_proper_answer_is_not_delivered_as_one(stage: Any, http: Any, said: bytes, watch: str) -> None:
    stage.script([said, "close"], stage.told(watch=watch), http.answer(b"{}", 418))
    with stage.front.connect() as client:
        client.sendall(stage.request())
        raw = b"".join(iter(lambda: client.recv(65536), b""))
    if raw:
        assert http.read_answer(raw).status == 418
    else:  # nginx found out too late to ask the core again
        report = stage.report(stage.exchange())
        assert not 200 <= report.status <= 599 or [seen.cut for seen in report.watched] == [True], report


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_ends(stage: Any, http: Any, status: int) -> None:
    stage.script([http.head({}, status)], stage.told(watch="usage"), http.answer(b"{}", 418))
    got = stage.receive(stage.request())
    assert got.status == (status if status == 204 else 418)
