"""A chat as a Messages request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from headrace import chat
from headrace.errors import InvalidRequest

from . import chat_parts, wire
from .config import Options

LOST = (
    *("min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("logprobs", "top_logprobs", "metadata"),
)
"""Fields that Anthropic's API has not."""
DEFAULTS: dict[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "metadata": ({},),
}
"""Values that say nothing."""
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
BUDGETS = {"low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 32_768}
LEAST_BUDGET = 1024
"""Tokens, as Anthropic wants them."""
NO_SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}


def as_messages(request: chat.Request, model: str, limit: int | None, options: Options) -> tuple[bytes, list[str]]:
    """The body of the request, and the names of what it does not carry.

    Args:
        model: the model's name at the backend.
        limit: tokens of the answer, where the request sets no limit.

    Raises:
        InvalidRequest: something cannot be carried and must not be left out.
    """
    if (request.n or 1) > 1:
        raise InvalidRequest("This backend gives one answer to a request: n must be 1.", param="n")
    dropped = [name for name in LOST if getattr(request, name) not in (None, *DEFAULTS.get(name, ()))]
    body: dict[str, Any] = {"model": model, "max_tokens": request.answer_tokens or limit or options.max_tokens}
    body |= prompt(request, dropped)
    for name in ("temperature", "top_p", "top_k"):
        body[name] = getattr(request, name)
    body["stop_sequences"] = request.stops or None
    body["stream"] = request.stream or None
    body["metadata"] = {"user_id": request.user} if request.user else None
    output = _format(request.response_format, dropped)
    _think(request, body, output, options, dropped)
    body["output_config"] = output or None
    return msgspec.json.encode({name: value for name, value in body.items() if value is not None}), dropped


def prompt(request: chat.Request, dropped: list[str]) -> dict[str, Any]:
    """The fields that become the prompt. Raises InvalidRequest."""
    tools = _tools(request.tools)
    if not tools:  # there is nothing to choose from
        dropped += [name for name in ("tool_choice", "parallel_tool_calls") if getattr(request, name) is not None]
    return {
        "system": _system(request.messages, dropped),
        "messages": list(chat_parts.turns(request.messages, dropped)),
        "tools": tools,
        "tool_choice": _choice(request) if tools else None,
    }


def _system(messages: Iterable[chat.Message], dropped: list[str]) -> str | list[wire.TextBlock] | None:
    """All of them, wherever they stand, come before the conversation."""
    texts = list(_system_texts(messages, dropped))
    if len(texts) < 2:
        return texts[0] if texts else None
    return [wire.TextBlock(text) for text in texts]


def _system_texts(messages: Iterable[chat.Message], dropped: list[str]) -> Iterator[str]:
    for number, message in enumerate(messages):
        if not isinstance(message, chat.System | chat.Developer):
            continue
        if message.name:
            dropped.append("messages.name")
        for part in [chat.Text(message.content)] if isinstance(message.content, str) else message.content:
            if not isinstance(part, chat.Text):
                raise InvalidRequest("A system message has texts alone.", param=f"messages[{number}].content")
            if part.text:
                yield part.text


def _tools(tools: list[chat.Tool] | None) -> list[dict[str, Any]] | None:
    return [_tool(tool.function) for tool in tools or ()] or None


def _tool(function: chat.Function) -> dict[str, Any]:
    tool: dict[str, Any] = {"name": function.name, "input_schema": function.parameters or NO_SCHEMA}
    if function.description is not None:
        tool["description"] = function.description
    if function.strict:
        tool["strict"] = True
    return tool


def _choice(request: chat.Request) -> dict[str, Any] | None:
    choice = request.tool_choice
    if choice == "none":
        return {"type": "none"}
    one = {"disable_parallel_tool_use": True} if request.parallel_tool_calls is False else {}
    if isinstance(choice, chat.NamedTool):
        return {"type": "tool", "name": choice.function.name, **one}
    if choice == "required":
        return {"type": "any", **one}
    return {"type": "auto", **one} if choice or one else None


def _format(wanted: chat.ResponseFormat | None, dropped: list[str]) -> dict[str, Any]:
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type != "json_schema" or wanted.json_schema is None or wanted.json_schema.schema is None:
        message = (
            f"This backend has no response_format of the type {wanted.type!r} without a schema: give a json_schema."
        )
        raise InvalidRequest(message, param="response_format")
    if wanted.json_schema.description is not None:
        dropped.append("response_format.json_schema.description")
    return {"format": {"type": "json_schema", "schema": wanted.json_schema.schema}}


def _think(
    request: chat.Request, body: dict[str, Any], output: dict[str, Any], options: Options, dropped: list[str]
) -> None:
    """How much it shall think, as the backend's models are told it."""
    if request.reasoning_effort in (None, "none"):
        return
    effort = EFFORTS.get(request.reasoning_effort or "")
    if effort is not None and options.thinking == "adaptive":
        body["thinking"] = {"type": "adaptive"}
        output["effort"] = effort
    elif effort is not None and options.thinking == "budget" and _may_think(request, body["max_tokens"]):
        budget = min(BUDGETS[effort], body["max_tokens"] - 1)
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    else:
        dropped.append("reasoning_effort")


def _may_think(request: chat.Request, limit: int) -> bool:
    """Whether a budget of thinking would be refused: it must leave room, goes with no forced tool, and not behind calls
    whose thoughts a chat does not keep."""
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, chat.NamedTool)
    calling = request.messages and isinstance(request.messages[-1], chat.ToolResult)
    return limit > LEAST_BUDGET and not forced and not calling
