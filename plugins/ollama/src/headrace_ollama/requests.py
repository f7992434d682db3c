"""What clients ask for, in OpenAI's words: the body of a chat is `headrace.chat.Request`, these are the others."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from headrace import chat
from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest


class Completion(msgspec.Struct, omit_defaults=True):
    """The body of `POST /v1/completions` (https://platform.openai.com/docs/api-reference/completions/create)."""

    model: str
    prompt: str | list[Any]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None
    stream: bool | None = None
    stream_options: chat.StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: chat.ResponseFormat | None = None
    user: str | None = None

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Embedding(msgspec.Struct, omit_defaults=True):
    """The body of `POST /v1/embeddings` (https://platform.openai.com/docs/api-reference/embeddings/create)."""

    model: str
    input: str | list[Any]
    dimensions: int | None = None
    encoding_format: str | None = None
    user: str | None = None


_chat = msgspec.json.Decoder(chat.Request)
_completion = msgspec.json.Decoder(Completion)
_embedding = msgspec.json.Decoder(Embedding)
T = TypeVar("T")


def read_chat(body: bytes) -> chat.Request:
    """Raises InvalidRequest."""
    return _read(_chat, body)


def _read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body cannot be read: {error}.", code="invalid_json") from error


def read_completion(body: bytes) -> Completion:
    """Raises InvalidRequest."""
    return _read(_completion, body)


def read_embedding(body: bytes) -> Embedding:
    """Raises InvalidRequest."""
    return _read(_embedding, body)
