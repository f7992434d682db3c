"""OpenAI's package for Python, through nginx over TLS and straight to the core."""

from __future__ import annotations

from typing import Any

import openai
import pytest

STORY: Any = [{"role": "user", "content": "Write a short story about the sea."}]


@pytest.fixture
def client(route: Any) -> Any:
    with route.sdk() as client:
        yield client


@pytest.fixture
async def async_client(route: Any) -> Any:
    async with route.async_sdk() as client:
        yield client


def test_the_models_are_listed(client: Any, stack: Any) -> None:
    assert [model.id for model in client.models.list()] == stack.models


def test_one_model_can_be_asked_for(client: Any) -> None:
    assert client.models.retrieve("fake").object == "model"


def test_a_whole_chat_answer_of_the_real_model(client: Any, stack: Any) -> None:
    answer = client.chat.completions.create(model=stack.model, messages=STORY, temperature=0, max_tokens=12)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content.strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_a_whole_completion_of_the_real_model(client: Any, stack: Any) -> None:
    answer = client.completions.create(model=stack.model, prompt="One, two, three,", temperature=0, max_tokens=8)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.strip()


def test_a_chat_stream_of_the_real_model(client: Any, stack: Any) -> None:
    chunks = list(
        client.chat.completions.create(model=stack.model, messages=STORY, temperature=0, max_tokens=12, stream=True)
    )
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks if chunk.choices) > 3
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks)


def test_a_completion_stream_of_the_real_model(client: Any, stack: Any) -> None:
    chunks = list(
        client.completions.create(model=stack.model, prompt="One, two,", temperature=0, max_tokens=8, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks).strip()


def test_usage_comes_in_the_last_chunk_if_it_is_asked_for(client: Any, stack: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=stack.model,
            messages=STORY,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert 0 < chunks[-1].usage.completion_tokens <= 12


def test_a_dead_backend_is_stood_in_for_by_the_next(client: Any) -> None:
    assert client.chat.completions.create(model="rescued", messages=STORY).choices[0].message.content == "hi"


async def test_the_asynchronous_client_gets_a_whole_answer(async_client: Any, stack: Any) -> None:
    answer = await async_client.chat.completions.create(model=stack.model, messages=STORY, temperature=0, max_tokens=8)
    assert answer.choices[0].message.content.strip()


async def test_the_asynchronous_client_streams(async_client: Any, stack: Any) -> None:
    stream = await async_client.chat.completions.create(
        model=stack.model,
        messages=STORY,
        temperature=0,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].usage is not None


async def test_the_asynchronous_client_lists_the_models(async_client: Any, stack: Any) -> None:
    assert [model.id async for model in async_client.models.list()] == stack.models


async def test_the_asynchronous_client_raises_its_own_errors(async_client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        await async_client.chat.completions.create(model="gpt-99", messages=STORY)


def test_a_wrong_key_is_its_authentication_error(route: Any) -> None:
    with route.sdk("hr-wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="fake", messages=STORY)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


def test_an_unknown_model_is_its_not_found_error(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-99", messages=STORY)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "smollm2-135m" in caught.value.message


def test_empty_messages_are_its_bad_request_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=[])
    assert caught.value.param == "messages"


def test_a_prompt_longer_than_the_context_is_its_bad_request_error(client: Any, stack: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=stack.model, messages=[{"role": "user", "content": "word " * 5000}])
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in caught.value.message


@pytest.mark.parametrize(
    "status, raised, code",
    [
        (500, openai.InternalServerError, "upstream_error"),
        (503, openai.InternalServerError, "unavailable"),
        (429, openai.RateLimitError, "upstream_rate_limited"),
        (401, openai.InternalServerError, "upstream_auth"),
        (422, openai.UnprocessableEntityError, None),
    ],
)
def test_what_a_backend_fails_with_is_the_right_error(
    client: Any, stack: Any, status: int, raised: type[openai.APIStatusError], code: str | None
) -> None:
    stack.fake.status = status
    with pytest.raises(raised) as caught:
        client.chat.completions.create(model="fake", messages=STORY)
    assert caught.value.code == code


@pytest.mark.parametrize("stream", [False, True])
def test_the_backend_gets_its_own_key_and_never_the_callers(client: Any, stack: Any, stream: bool) -> None:
    answer = client.chat.completions.create(model="fake", messages=STORY, stream=stream)
    if stream:
        list(answer)
    _, headers, body = next(each for each in stack.fake.requests if each[0].endswith("/chat/completions"))
    assert headers["authorization"] == "Bearer sk-upstream-secret"
    assert stack.key not in repr(headers) + body.decode()
