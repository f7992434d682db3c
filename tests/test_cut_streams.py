"""A stream that breaks off at the backend is never taken for a whole answer."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def events(route: Any) -> list[str]:
    with route.client() as client, client.stream("POST", "/v1/chat/completions", json=ASK) as answer:
        assert answer.status_code == 200
        return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


def test_a_whole_stream_ends_with_done(route: Any) -> None:
    *chunks, done = events(route)
    assert done == "[DONE]"
    assert [json.loads(chunk)["choices"][0]["delta"].get("content") for chunk in chunks] == ["t0 ", "t1 ", "t2 ", None]


def test_a_cut_stream_ends_with_an_error_and_without_done(route: Any) -> None:
    route.stack.fake.cut_after = 2
    *chunks, last = events(route)
    assert len(chunks) == 2
    error = json.loads(last)["error"]
    assert error["code"] == "stream_truncated"
    assert "incomplete" in error["message"]


@pytest.mark.parametrize("cut_after", [1, 2])
def test_the_sdk_raises_after_what_came(route: Any, cut_after: int) -> None:
    route.stack.fake.cut_after = cut_after
    pieces = []
    with (
        route.sdk() as client,
        pytest.raises(openai.APIError, match="incomplete"),
    ):
        for chunk in client.chat.completions.create(**ASK):
            pieces.append(chunk.choices[0].delta.content)
    assert pieces == ["t0 ", "t1 "][:cut_after]


def test_a_stream_cut_before_its_first_chunk_is_an_error(route: Any) -> None:
    route.stack.fake.cut_after = 0
    with route.client() as client:
        answer = client.post("/v1/chat/completions", json=ASK)
    if route.delivery == "inline":
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    else:  # nginx has passed the backend's head on by then
        assert answer.status_code == 200
        assert json.loads(answer.text.strip().removeprefix("data: "))["error"]["code"] == "stream_truncated"


def test_the_log_says_that_it_was_cut(route: Any) -> None:
    route.stack.fake.cut_after = 1
    with route.client() as client, client.stream("POST", "/v1/chat/completions", json=ASK) as answer:
        identifier = answer.headers["x-request-id"]
        answer.read()
    assert route.stack.logged(identifier)["level"] == "error"
