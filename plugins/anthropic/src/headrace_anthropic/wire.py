"""Anthropic's Messages API as it is on the wire: https://platform.claude.com/docs/en/api/messages

What stands here is what can be translated; `spare.py` names the rest of a request.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

VERSION = "2023-06-01"
"""Of the API, as `anthropic-version` has it."""


class _Plain(msgspec.Struct, omit_defaults=True):
    pass


# --- where pictures and documents come from ---


class Base64Source(_Plain, tag_field="type", tag="base64"):
    media_type: str
    data: str


class URLSource(_Plain, tag_field="type", tag="url"):
    url: str


class FileSource(_Plain, tag_field="type", tag="file"):
    file_id: str


class TextSource(_Plain, tag_field="type", tag="text", omit_defaults=False):
    data: str
    media_type: str = "text/plain"


class ContentSource(_Plain, tag_field="type", tag="content"):
    content: str | list[TextBlock | ImageBlock]


# --- blocks ---


class TextBlock(_Plain, tag_field="type", tag="text"):
    text: str


class ImageBlock(_Plain, tag_field="type", tag="image"):
    source: Base64Source | URLSource | FileSource


class DocumentBlock(_Plain, tag_field="type", tag="document"):
    source: Base64Source | URLSource | FileSource | TextSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(_Plain, tag_field="type", tag="search_result"):
    source: str
    title: str
    content: list[TextBlock]


class ToolUseBlock(_Plain, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Returned: TypeAlias = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(_Plain, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[Returned] | None = None
    is_error: bool | None = None


class ThinkingBlock(_Plain, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(_Plain, tag_field="type", tag="redacted_thinking"):
    data: str


Block: TypeAlias = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
)


# --- a request ---


class Message(_Plain):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(_Plain):
    name: str
    type: str | None = None
    """None or `custom`: one of the client's. Any other names one that Anthropic brings."""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(_Plain):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(_Plain):
    type: str
    """`enabled`, `disabled`, `adaptive`, or what else a model knows."""
    budget_tokens: int | None = None


class Metadata(_Plain):
    user_id: str | None = None


class Format(_Plain):
    schema: dict[str, Any]
    type: Literal["json_schema"]


class OutputConfig(_Plain):
    effort: str | None = None
    """`low`, `medium`, `high`, `xhigh` or `max`."""
    format: Format | None = None


class Request(_Plain):
    """The body of `POST /v1/messages`, and of `/v1/messages/count_tokens`, which has no `max_tokens`."""

    model: str
    messages: list[Message]
    max_tokens: int | None = None
    system: str | list[TextBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    """What was called so before it came into `output_config`."""


# --- answers ---


class OutputDetails(_Plain):
    thinking_tokens: int | None = None


class Usage(_Plain):
    """What is cached is no part of `input_tokens`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt."""
        return (self.input_tokens or 0) + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)

    def updated(self, later: Usage | None) -> Usage:
        """What a later event of the same stream says goes before."""
        if later is None:
            return self
        said = {name: value for name in later.__struct_fields__ if (value := getattr(later, name)) is not None}
        return msgspec.structs.replace(self, **said)


class StopDetails(_Plain):
    explanation: str | None = None


class AnswerBlock(_Plain):
    """Any block of an answer; what is not ours to read stays unread."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class Answer(_Plain):
    """A whole answer."""

    content: list[AnswerBlock]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: Usage | None = None


class StartedMessage(_Plain):
    id: str = ""
    model: str = ""
    usage: Usage | None = None


class Delta(_Plain):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None


class ErrorObject(_Plain):
    type: str = "api_error"
    message: str = ""


class Event(_Plain):
    """Any event of a stream: https://platform.claude.com/docs/en/build-with-claude/streaming"""

    type: str
    index: int = 0
    message: StartedMessage | None = None
    content_block: AnswerBlock | None = None
    delta: Delta | None = None
    usage: Usage | None = None
    error: ErrorObject | None = None


class ErrorBody(_Plain):
    error: ErrorObject
