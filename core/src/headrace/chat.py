"""The canonical form: what is translated, from one dialect or to another, is an OpenAI chat as these types have it.

Fields are named and nested as in https://platform.openai.com/docs/api-reference/chat, with those of vLLM and others
that have no name there (`reasoning_content`, `top_k`). Nothing else of a request can be carried: `unknown` names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec


class _Plain(msgspec.Struct, omit_defaults=True):
    pass


# --- what a message is made of ---


class Text(_Plain, tag_field="type", tag="text"):
    text: str


class ImageURL(_Plain):
    url: str
    """An address, or `data:image/png;base64,…`."""
    detail: str | None = None


class Image(_Plain, tag_field="type", tag="image_url"):
    image_url: ImageURL


class AudioData(_Plain):
    data: str
    format: str


class Audio(_Plain, tag_field="type", tag="input_audio"):
    input_audio: AudioData


class FileData(_Plain):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class File(_Plain, tag_field="type", tag="file"):
    file: FileData


class Refusal(_Plain, tag_field="type", tag="refusal"):
    refusal: str


Part: TypeAlias = Text | Image | Audio | File | Refusal
Content: TypeAlias = str | list[Part]


class FunctionCall(_Plain):
    name: str
    arguments: str
    """JSON, as the model wrote it: it may be none."""


class ToolCall(_Plain, omit_defaults=False):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


# --- messages ---


class System(_Plain, tag_field="role", tag="system"):
    content: Content
    name: str | None = None


class Developer(_Plain, tag_field="role", tag="developer"):
    content: Content
    name: str | None = None


class User(_Plain, tag_field="role", tag="user"):
    content: Content
    name: str | None = None


class Assistant(_Plain, tag_field="role", tag="assistant"):
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """What it thought before, as vLLM, DeepSeek and others say it."""
    reasoning: str | None = None
    """The same by another name."""
    name: str | None = None

    @property
    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class ToolResult(_Plain, tag_field="role", tag="tool"):
    tool_call_id: str
    content: Content


Message: TypeAlias = System | Developer | User | Assistant | ToolResult


# --- a request ---


class Function(_Plain):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: bool | None = None


class Tool(_Plain, omit_defaults=False):
    function: Function
    type: Literal["function"] = "function"


class FunctionName(_Plain):
    name: str


class NamedTool(_Plain, omit_defaults=False):
    """The one tool that is to be called."""

    function: FunctionName
    type: Literal["function"] = "function"


class JSONSchema(_Plain):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Plain):
    type: str
    """`text`, `json_object` or `json_schema`."""
    json_schema: JSONSchema | None = None


class StreamOptions(_Plain):
    include_usage: bool | None = None


class Request(_Plain):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
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
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def answer_tokens(self) -> int | None:
        """How long the answer may be, by either name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


FIELDS = frozenset(Request.__struct_fields__)


def unknown(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a chat's top-level fields that the canonical form does not carry, in order."""
    return tuple(name for name in names if name not in FIELDS)


# --- answers ---


class PromptDetails(_Plain):
    cached_tokens: int | None = None
    audio_tokens: int | None = None


class CompletionDetails(_Plain):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class Usage(_Plain, omit_defaults=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were in a cache."""
        return (self.prompt_tokens_details.cached_tokens or 0) if self.prompt_tokens_details else 0

    @property
    def thought(self) -> int:
        """Tokens of the answer that nobody sees."""
        return (self.completion_tokens_details.reasoning_tokens or 0) if self.completion_tokens_details else 0


class Answer(_Plain):
    """The message of a choice."""

    role: str = msgspec.field(default_factory=lambda: "assistant")  # a default proper would be left out
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class Choice(_Plain, omit_defaults=False):
    message: Answer
    index: int = 0
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls`, `content_filter`, or what else an engine says."""
    logprobs: Any = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    """The text, or the token, before which the answer ended, as vLLM says it."""


class Completion(_Plain, omit_defaults=False):
    """A whole answer."""

    id: str
    choices: list[Choice]
    model: str = ""
    created: int = 0
    object: str = "chat.completion"
    usage: Usage | None = None


class FunctionDelta(_Plain):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_Plain, omit_defaults=False):
    """A piece of a tool call; those with one index belong together."""

    index: int = 0
    id: str | msgspec.UnsetType | None = msgspec.UNSET
    type: str | msgspec.UnsetType | None = msgspec.UNSET
    function: FunctionDelta | None = None


class Delta(_Plain):
    """What is new of a message."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class ChunkChoice(_Plain, omit_defaults=False):
    delta: Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET


class Chunk(_Plain, omit_defaults=False):
    """One event of a stream."""

    choices: list[ChunkChoice]
    id: str = ""
    model: str = ""
    created: int = 0
    object: str = "chat.completion.chunk"
    usage: Usage | None = None


DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""

_encode = msgspec.json.Encoder().encode


def event(chunk: Chunk) -> bytes:
    """A chunk as it is streamed."""
    return b"data: " + _encode(chunk) + b"\n\n"
