"""The requests that the engine understands: OpenAI's fields, checked, and a few of llama.cpp's.

Fields that are not listed here are ignored; what is listed and cannot be done is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from headrace.errors import InvalidRequest

Limited = Annotated[int, msgspec.Meta(ge=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Token = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Text = str | Annotated[list[str | Token | list[Token]], msgspec.Meta(min_length=1)]
"""One text, several texts, the tokens of one text, or those of several."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for `max_tokens` of completions (https://platform.openai.com/docs/api-reference/completions)."""


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Sampling(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What chat and completion requests have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Limited | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]] | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def texts(self) -> int:
        """How many prompts this is."""
        return 1

    @property
    def alternatives(self) -> int | None:
        """How many alternatives with their log probabilities each token comes with; None: no log probabilities."""
        return None

    def payload(self) -> dict[str, Any]:
        """What llama.cpp is asked: always a stream, so that it can be stopped, with its progress and its usage."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {**fields, "stream": True, "stream_options": {"include_usage": True}, "return_progress": True}


class ChatRequest(Sampling, kw_only=True, omit_defaults=True):
    """`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat/create)."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    max_tokens: Limited | None = None
    max_completion_tokens: Limited | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a tool call."""
        return bool(self.tools) and self.tool_choice not in (None, "auto", "none")

    def payload(self) -> dict[str, Any]:
        fields = super().payload()
        if self.logprobs:
            fields["top_logprobs"] = max(1, self.top_logprobs or 0)  # llama.cpp takes 0 for "no log probabilities"
        return fields


class CompletionRequest(Sampling, kw_only=True, omit_defaults=True):
    """`POST /v1/completions` (https://platform.openai.com/docs/api-reference/completions/create)."""

    prompt: Text
    max_tokens: Limited | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def __post_init__(self) -> None:
        _check_text(self.prompt, "prompt")
        unsupported = {"echo": self.echo, "suffix": self.suffix, "best_of": (self.best_of or 1) > (self.n or 1)}
        for name, given in unsupported.items():
            if given:
                raise _Refused(f"{name} is not supported by this engine", name)

    @property
    def texts(self) -> int:
        return 1 if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else len(self.prompt)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def payload(self) -> dict[str, Any]:
        fields = super().payload()
        if self.logprobs is not None:
            fields["logprobs"] = max(1, self.logprobs)
        return {"max_tokens": DEFAULT_COMPLETION_TOKENS, **fields}


class EmbeddingRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`POST /v1/embeddings` (https://platform.openai.com/docs/api-reference/embeddings/create)."""

    input: Text
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    def __post_init__(self) -> None:
        _check_text(self.input, "input")
        if self.dimensions is not None:
            raise _Refused("dimensions is not supported by this engine", "dimensions")


class _Refused(ValueError):
    """A field's value that is well-formed and cannot be served."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def _check_text(value: Any, param: str) -> None:
    if isinstance(value, list) and len({type(item) for item in value}) > 1:
        raise _Refused(f"{param} mixes texts and tokens: give one kind", param)


Request = TypeVar("Request", ChatRequest, CompletionRequest, EmbeddingRequest)


def read(body: bytes, kind: type[Request]) -> Request:
    """Check a request's body.

    Raises:
        InvalidRequest: with the name of the field that is wrong.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _as_invalid(error) from error


def _as_invalid(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec's words ("Expected … - at `$.field[…]`") as an error that names the field."""
    if isinstance(error.__cause__, _Refused):
        return InvalidRequest(f"{error.__cause__}.", param=error.__cause__.param, code="unsupported_parameter")
    message, _, place = str(error).partition(" - at `$.")
    place = place.rstrip("`")
    param = place.partition("[")[0].partition(".")[0] or None
    if param is None and "missing required field" in message:
        param = message.split("`")[-2]
    return InvalidRequest(f"{place}: {message}." if place else f"{message}.", param=param)
