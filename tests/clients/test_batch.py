"""Batches through nginx over TLS and straight to the core, as any HTTP client asks them."""

from __future__ import annotations

from typing import Any

import pytest

PATH = "/v1/batch/chat/completions"
STORY = [{"role": "user", "content": "Write a short story about the sea."}]


@pytest.fixture
def client(route: Any) -> Any:
    with route.client() as client:
        yield client


def test_chats_for_several_models_are_answered_in_their_order(client: Any, stack: Any) -> None:
    requests = [
        {"model": "fake", "messages": STORY},
        {"model": stack.model, "messages": STORY, "temperature": 0, "max_tokens": 4},
        {"model": "rescued", "messages": STORY},
        {"model": "gpt-99", "messages": STORY},
    ]
    answer = client.post(PATH, json={"requests": requests})
    assert answer.status_code == 200, answer.text
    found = [line["response"] for line in answer.json()["data"]]
    assert [each["status_code"] for each in found] == [200, 200, 200, 404]
    assert found[0]["body"]["choices"][0]["message"]["content"] == "hi"
    assert found[1]["body"]["choices"][0]["message"]["content"].strip()
    assert answer.json()["request_counts"] == {"total": 4, "completed": 3, "failed": 1}


def test_each_chat_has_its_own_line_in_the_log(client: Any, stack: Any, route: Any) -> None:
    identifier = f"batch-{route.name}-{stack.delivery}"
    body = {"model": "fake", "messages": [STORY, STORY]}
    answer = client.post(PATH, json=body, headers={"x-request-id": identifier})
    assert [line["id"] for line in answer.json()["data"]] == [f"{identifier}-0", f"{identifier}-1"]
    logged = [stack.logged(f"{identifier}-{number}") for number in range(2)]
    assert [(line["http.response.status_code"], line["delivery"]) for line in logged] == [(200, "inline")] * 2


def test_a_wrong_key_is_refused(route: Any) -> None:
    with route.client("hr-wrong") as client:
        assert client.post(PATH, json=[{"model": "fake", "messages": STORY}]).status_code == 401
