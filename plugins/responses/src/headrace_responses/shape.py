"""The response object and what it is made of (https://platform.openai.com/docs/api-reference/responses/object)."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal, TypeAlias

import msgspec

from headrace import chat
from headrace.exchange import Exchange

from .asked import NULL, Asked, ReasoningConfig

Status = Literal["in_progress", "completed", "incomplete"]


def fresh(prefix: str) -> str:
    """A new id."""
    return f"{prefix}_{uuid.uuid4().hex}"


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputRefusal(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str = ""


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str = ""


class Message(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText | OutputRefusal]
    role: str = "assistant"


class FunctionCall(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str = ""


class Reasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[Any] = []


Item: TypeAlias = Message | FunctionCall | Reasoning


class InputDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(msgspec.Struct):
    reason: str


class Response(msgspec.Struct):
    """`usage` is last: it is looked for at the end of an answer."""

    id: str
    created_at: int
    model: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningConfig
    safety_identifier: str | None
    service_tier: str | None
    store: bool
    temperature: float | None
    text: msgspec.Raw
    tool_choice: msgspec.Raw
    tools: list[msgspec.Raw]
    top_logprobs: int | None
    top_p: float | None
    truncation: str
    user: str | None
    object: str = "response"
    status: Status = "in_progress"
    completed_at: int | None = None
    background: bool = False
    error: None = None
    incomplete_details: Incomplete | None = None
    output: list[Item] = []
    usage: Usage | None = None


def begun(asked: Asked, exchange: Exchange, model: str, previous: str | None, *, stored: bool) -> Response:
    """A response with nothing in it yet."""
    text = exchange.fields.get("text", NULL)
    return Response(
        id=fresh("resp"),
        created_at=int(time.time()),
        model=model or asked.model,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        max_tool_calls=asked.max_tool_calls,
        metadata=asked.metadata or {},
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        previous_response_id=previous,
        prompt_cache_key=asked.prompt_cache_key,
        reasoning=asked.reasoning or ReasoningConfig(),
        safety_identifier=asked.safety_identifier,
        service_tier=asked.service_tier,
        store=stored,
        temperature=asked.temperature,
        text=text if bytes(text) != b"null" else PLAIN,
        tool_choice=asked.tool_choice if bytes(asked.tool_choice) != b"null" else AUTO,
        tools=asked.tools or [],
        top_logprobs=asked.top_logprobs,
        top_p=asked.top_p,
        truncation=asked.truncation or "disabled",
        user=asked.user,
    )


PLAIN = msgspec.Raw(b'{"format":{"type":"text"}}')
AUTO = msgspec.Raw(b'"auto"')
WHY = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is incomplete, by the finish reason of a chat."""


def finish(response: Response, finish_reason: str | None, usage: chat.Usage | None) -> Status:
    """All has been said. Returns the status, which an item that was cut has, too."""
    why = WHY.get(finish_reason or "")
    response.status = "completed" if why is None else "incomplete"
    response.incomplete_details = None if why is None else Incomplete(why)
    response.completed_at = int(time.time()) if why is None else None
    response.usage = None if usage is None else counted(usage)
    return response.status


def counted(usage: chat.Usage) -> Usage:
    """Token counts by the names of this API."""
    return Usage(
        usage.prompt_tokens,
        InputDetails(usage.cached),
        usage.completion_tokens,
        OutputDetails(usage.thought),
        usage.total_tokens or usage.prompt_tokens + usage.completion_tokens,
    )


def items_of(answer: chat.Answer, logprobs: Any, status: Status) -> list[Item]:
    """What an answer consists of: its thoughts, its words, its calls. Of an incomplete one the last is incomplete."""
    items: list[Item] = []
    if answer.thought:
        items.append(Reasoning(fresh("rs"), "completed", [ReasoningText(answer.thought)]))
    if answer.content or answer.refusal or not (answer.thought or answer.tool_calls):
        items.append(Message(fresh("msg"), "completed", _parts(answer, logprobs)))
    for call in answer.tool_calls or ():
        function = call.function
        items.append(
            FunctionCall(fresh("fc"), "completed", call.id or fresh("call"), function.name, function.arguments)
        )
    items[-1].status = status
    return items


def _parts(answer: chat.Answer, logprobs: Any) -> list[OutputText | OutputRefusal]:
    parts: list[OutputText | OutputRefusal] = []
    if answer.content or not answer.refusal:
        parts.append(OutputText(answer.content or "", logprobs=tokens_of(logprobs)))
    if answer.refusal:
        parts.append(OutputRefusal(answer.refusal))
    return parts


def tokens_of(logprobs: Any) -> list[Any]:
    """The tokens of a chat's log probabilities: they are named alike in both APIs."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return tokens if isinstance(tokens, list) else []
