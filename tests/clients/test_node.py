"""OpenAI's package for node, through nginx over TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Node = Callable[..., Any]


def test_it_lists_the_models(node: Node, stack: Any) -> None:
    assert node("talk.mjs", "models", "") == {"names": stack.models}


def test_it_gets_a_whole_answer_of_the_real_model(node: Node, stack: Any) -> None:
    found = node("talk.mjs", "chat", stack.model)
    assert found["text"].strip()
    assert 0 < found["usage"]["completion_tokens"] <= 12
    assert found["id"]


def test_it_completes_a_text(node: Node, stack: Any) -> None:
    assert node("talk.mjs", "completion", stack.model)["text"].strip()


def test_it_streams_an_answer_of_the_real_model_with_its_usage(node: Node, stack: Any) -> None:
    found = node("talk.mjs", "stream", stack.model)
    assert len(found["pieces"]) > 3
    assert found["reason"] in ("stop", "length")
    assert found["usage"]["completion_tokens"] >= len(found["pieces"])


def test_an_unknown_model_is_its_not_found_error(node: Node) -> None:
    found = node("talk.mjs", "error", "gpt-99")
    assert (found["name"], found["status"], found["code"]) == ("NotFoundError", 404, "model_not_found")


def test_a_wrong_key_is_its_authentication_error(node: Node) -> None:
    found = node("talk.mjs", "key", "")
    assert (found["name"], found["status"], found["code"]) == ("AuthenticationError", 401, "invalid_api_key")


def test_a_backend_that_fails_is_its_internal_server_error(node: Node, stack: Any) -> None:
    stack.fake.status = 500
    found = node("talk.mjs", "error", "fake")
    assert (found["name"], found["status"], found["code"]) == ("InternalServerError", 502, "upstream_error")


def test_a_cut_stream_raises_after_what_came(node: Node, stack: Any) -> None:
    stack.fake.cut_after = 2
    found = node("talk.mjs", "cut", "fake")
    assert found["pieces"] == ["t0 ", "t1 "]
    assert found["name"] == "APIError"
    assert "incomplete" in found["message"]


def test_leaving_its_loop_closes_the_backend_connection(node: Node, stack: Any, kit: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 1000, 0.05
    node("talk.mjs", "leave", "fake")
    kit.until(stack.fake.closed_early.is_set, "the close of the backend's connection")
