"""Packages that people ask with, each by every dialect it speaks, through the gateway to a backend with chats alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

EXCEPTIONS = {
    "langchain-chat": ("OpenAIModelNotFoundError", "OpenAIAuthenticationError"),
    "langchain-responses": ("OpenAIModelNotFoundError", "OpenAIAuthenticationError"),
    "langchain-messages": ("AnthropicModelNotFoundError", "AnthropicAuthenticationError"),
    "llama_index-chat": ("NotFoundError", "AuthenticationError"),
    "haystack-chat": ("NotFoundError", "AuthenticationError"),
    "haystack-responses": ("NotFoundError", "AuthenticationError"),
    "semantic_kernel-chat": ("ServiceResponseException", "ServiceResponseException"),
    "pydantic_ai-chat": ("ModelNotFoundError", "ModelAuthenticationError"),
    "pydantic_ai-responses": ("ModelNotFoundError", "ModelAuthenticationError"),
    "pydantic_ai-messages": ("ModelNotFoundError", "ModelAuthenticationError"),
    "vercel-chat": ("AI_APICallError", "AI_APICallError"),
    "vercel-responses": ("AI_APICallError", "AI_APICallError"),
    "vercel-messages": ("AI_APICallError", "AI_APICallError"),
}
"""Of each package and dialect: what it raises for a model that is not there, and for a key that is not one."""
CALLED = {"text": "It is 21 degrees in Oslo.", "call": ["get_temperature", {"city": "Oslo"}]}
"""The tool was called as the backend said, and the backend was told what it returned."""


@pytest.fixture(params=EXCEPTIONS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def seen(client: str, seen_by: Callable[[str], Any]) -> dict[str, Any]:
    """What one package saw by one dialect."""
    package, dialect = client.split("-")
    found: dict[str, Any] = seen_by(package)[0][dialect]
    return found


def test_a_whole_answer_comes_with_its_counts(seen: dict[str, Any]) -> None:
    assert seen["whole"] == {"text": "One two three.", "usage": [7, 5]}


def test_a_stream_comes_in_the_pieces_that_the_backend_said(seen: dict[str, Any]) -> None:
    assert seen["stream"] == {"pieces": ["One ", "two ", "three."]}


def test_a_tool_is_called_and_what_it_returns_is_answered(seen: dict[str, Any]) -> None:
    assert seen["tools"] == CALLED


def test_a_call_that_comes_in_fragments_is_put_together(seen: dict[str, Any]) -> None:
    assert seen["streamed_tools"] == CALLED


def test_an_unknown_model_is_told_in_its_own_exception(client: str, seen: dict[str, Any]) -> None:
    assert seen["unknown_model"]["error"] == EXCEPTIONS[client][0]
    assert "The model 'gpt-99' does not exist. Available models:" in seen["unknown_model"]["text"]


def test_a_wrong_key_is_told_in_its_own_exception(client: str, seen: dict[str, Any]) -> None:
    assert seen["wrong_key"]["error"] == EXCEPTIONS[client][1]
    assert "The API key is not complete" in seen["wrong_key"]["text"]


def test_a_stream_that_breaks_raises_after_what_came(seen: dict[str, Any]) -> None:
    assert seen["cut"].get("pieces") == ["One ", "two "]
    assert "The answer is incomplete." in seen["cut"].get("text", "it looked complete")


@pytest.mark.parametrize("package", sorted({each.split("-")[0] for each in EXCEPTIONS}))
def test_each_dialect_is_asked_for_at_its_own_endpoint(package: str, seen_by: Callable[[str], Any]) -> None:
    assert seen_by(package)[1] == {each.split("-")[1] for each in EXCEPTIONS if each.startswith(f"{package}-")}
