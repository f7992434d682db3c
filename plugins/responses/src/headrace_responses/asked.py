"""A request of the Responses API, and the chat that is asked in its place."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headrace import chat
from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest
from headrace.exchange import Exchange

from .conversation import Conversation
from .naming import Dropped
from .tools import read_choice, read_tools

NULL = msgspec.Raw(b"null")
OF_OPENAI = ("prompt", "conversation", "moderation")
"""Fields that cannot be left out without changing what is asked."""
LOGPROBS = "message.output_text.logprobs"
"""What stands in `include` of who wants log probabilities."""


class Format(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    format: Format | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, omit_defaults=False):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class Asked(msgspec.Struct):
    """The body of `POST /v1/responses`. The last eight fields are no part of OpenAI's API; vLLM has them here, too."""

    model: str
    input: str | list[msgspec.Raw] | None = None
    instructions: str | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: msgspec.Raw = NULL
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    previous_response_id: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


FIELDS = frozenset(Asked.__struct_fields__)
_asked = msgspec.json.Decoder(Asked).decode
_texts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def read(exchange: Exchange) -> Asked:
    """The request. Raises InvalidRequest: it makes no sense, or none as a chat."""
    try:
        asked = _asked(exchange.body)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    if asked.previous_response_id is not None:
        message = "No answers are kept here to go on from: send the whole conversation as input."
        raise InvalidRequest(message, param="previous_response_id", code="unsupported_parameter")
    for name in OF_OPENAI:
        if bytes(exchange.fields.get(name, NULL)) != b"null":
            message = f"The field {name!r} means something that OpenAI alone has: this model's backend cannot use it."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
    if asked.input is None:
        raise InvalidRequest("The field 'input' is required.", param="input", code="missing_field")
    return asked


def as_chat(asked: Asked, exchange: Exchange) -> tuple[bytes, tuple[str, ...]]:
    """The body of the chat, and the names of what it does not say. Raises InvalidRequest."""
    dropped = Dropped()
    messages = _messages(asked, dropped)
    tools = read_tools(asked.tools or [], dropped)
    choice, tools = read_choice(asked.tool_choice, tools)
    _name_the_rest(asked, exchange, dropped)
    request = chat.Request(
        model=asked.model,
        messages=messages,
        stream=asked.stream,
        max_tokens=asked.max_output_tokens,  # every server knows it; OpenAI's own, which may not, is not asked chats
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        stop=asked.stop,
        seed=asked.seed,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=asked.logit_bias,
        logprobs=True if asked.wants_logprobs else None,
        top_logprobs=asked.top_logprobs if asked.wants_logprobs else None,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls if tools else None,
        response_format=_format(asked.text.format) if asked.text and asked.text.format else None,
        reasoning_effort=asked.reasoning.effort if asked.reasoning else None,
        user=asked.user if asked.user is not None else asked.safety_identifier,
    )
    return _encode(request), dropped.names


def _messages(asked: Asked, dropped: Dropped) -> list[chat.Message]:
    conversation = Conversation(dropped)
    if asked.instructions is not None:
        conversation.say(chat.System(asked.instructions))
    if isinstance(asked.input, str):
        conversation.say(chat.User(asked.input))
    else:
        conversation.add_all(asked.input or ())
    messages = conversation.finished()
    if not messages:
        raise InvalidRequest("The field 'input' has nothing to answer.", param="input", code="invalid_value")
    return messages


def _format(given: Format) -> chat.ResponseFormat | None:
    if given.type == "text":
        return None
    if given.type == "json_object":
        return chat.ResponseFormat(given.type)
    if given.name is None:
        raise InvalidRequest(
            "The field 'text.format.name' is required.", param="text.format.name", code="missing_field"
        )
    return chat.ResponseFormat(given.type, chat.JSONSchema(given.name, given.schema, given.description, given.strict))


def _name_the_rest(asked: Asked, exchange: Exchange, dropped: Dropped) -> None:
    """What has no place in a chat."""
    fields = exchange.fields
    for name in fields:
        if name not in FIELDS and bytes(fields[name]) != b"null":
            dropped.add(name)
    _name_nested(fields, dropped)
    for name in asked.include or ():
        if name != LOGPROBS:
            dropped.add(f"include.{name}")
    if asked.top_logprobs and not asked.wants_logprobs:
        dropped.add("top_logprobs")
    if asked.truncation == "auto":
        dropped.add("truncation")
    if asked.user is not None:
        dropped.note("safety_identifier", asked.safety_identifier)
    if asked.service_tier not in (None, "auto", "default"):
        dropped.add("service_tier")
    if asked.stream_options is not None and asked.stream_options.include_obfuscation:
        dropped.add("stream_options.include_obfuscation")
    dropped.note("max_tool_calls", asked.max_tool_calls)
    dropped.note("prompt_cache_key", asked.prompt_cache_key)


def _name_nested(fields: dict[str, msgspec.Raw], dropped: Dropped) -> None:
    for name, known in (
        ("text", ("format",)),
        ("reasoning", ("effort",)),
        ("stream_options", ("include_obfuscation",)),
    ):
        if name in fields:
            dropped.unknown(fields[name], known, name)
    if "text" in fields and bytes(fields["text"]) != b"null":
        format = _texts(fields["text"]).get("format")
        if format is not None:
            dropped.unknown(format, Format.__struct_fields__, "text.format")
