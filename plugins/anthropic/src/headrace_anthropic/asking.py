"""A Messages request as a chat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from headrace import chat
from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest

from . import blocks, wire
from .spare import spare

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Anthropic's efforts, and the nearest that backends know."""
BUDGETS = ((4096, "low"), (16_384, "medium"))
"""Tokens of thinking up to which it takes so much effort; beyond, it is `high`."""
Choice: TypeAlias = Literal["none", "auto", "required"] | chat.NamedTool | None
CHOICES: Mapping[str, Literal["none", "auto", "required"]] = {"auto": "auto", "any": "required", "none": "none"}
LONGEST_USER = 64
"""Characters: OpenAI refuses a longer `user`."""
_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def as_chat(body: bytes, *, effort: bool = True) -> tuple[bytes, tuple[str, ...]]:
    """The body of the chat, and the names of what it does not carry.

    Args:
        effort: whether the backend may be told how much to think.

    Raises:
        InvalidRequest: a field is wrong, or cannot be carried and must not be left out.
    """
    asked, dropped = read(body)
    request = chat.Request(
        model=asked.model,
        messages=list(_messages(asked, dropped)),
        stream=asked.stream,
        max_tokens=_limit(asked),
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop_sequences or None,
        tools=_tools(asked.tools),
        tool_choice=_choice(asked.tool_choice),
        parallel_tool_calls=_parallel(asked),
        response_format=_format(asked),
        reasoning_effort=_effort(asked, dropped, effort),
        user=_user(asked.metadata, dropped),
    )
    return _encode(request), tuple(dict.fromkeys(dropped))


def read(body: bytes) -> tuple[wire.Request, list[str]]:
    """A request, and the names of what is in it beside. Raises InvalidRequest."""
    try:
        given = _any(body)
        dropped = spare(given)
        return msgspec.convert(given, wire.Request), dropped
    except msgspec.ValidationError as error:
        raise invalid_field(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from error


def _messages(asked: wire.Request, dropped: list[str]) -> Iterator[chat.Message]:
    """The turns: messages of one role, one after the other, are one."""
    if asked.messages[-1].role == "assistant":
        message = "The last message is the assistant's: this backend cannot be given the beginning of its answer."
        raise InvalidRequest(message, param="messages")
    yield from blocks.system(asked.system, dropped)
    for role, several in itertools.groupby(asked.messages, lambda message: message.role):
        turn = [block for message in several for block in blocks.as_blocks(message.content)]
        yield from TURNS[role](turn)


TURNS = {"user": blocks.user, "assistant": blocks.assistant, "system": blocks.later_system}


def _limit(asked: wire.Request) -> int | None:
    if asked.max_tokens == 0:
        message = "max_tokens is 0, which only fills Anthropic's own cache: ask this backend for an answer."
        raise InvalidRequest(message, param="max_tokens")
    return asked.max_tokens


def _tools(tools: list[wire.Tool] | None) -> list[chat.Tool] | None:
    return [_tool(number, tool) for number, tool in enumerate(tools or ())] or None


def _tool(number: int, tool: wire.Tool) -> chat.Tool:
    if tool.type not in (None, "custom"):
        message = f"The tool {tool.name!r} is Anthropic's own ({tool.type}): this backend has custom tools alone."
        raise InvalidRequest(message, param=f"tools[{number}].type")
    if tool.input_schema is None:
        raise InvalidRequest(
            f"The field 'tools[{number}].input_schema' is required.", param=f"tools[{number}].input_schema"
        )
    return chat.Tool(chat.Function(tool.name, tool.description, tool.input_schema, tool.strict))


def _choice(choice: wire.ToolChoice | None) -> Choice:
    if choice is None:
        return None
    if choice.type != "tool":
        return CHOICES[choice.type]
    if not choice.name:
        raise InvalidRequest("The field 'tool_choice.name' is required.", param="tool_choice.name")
    return chat.NamedTool(chat.FunctionName(choice.name))


def _parallel(asked: wire.Request) -> bool | None:
    return False if asked.tool_choice is not None and asked.tool_choice.disable_parallel_tool_use else None


def _format(asked: wire.Request) -> chat.ResponseFormat | None:
    wanted = (asked.output_config.format if asked.output_config else None) or asked.output_format
    if wanted is None:
        return None
    return chat.ResponseFormat("json_schema", chat.JSONSchema("answer", wanted.schema, strict=True))


def _effort(asked: wire.Request, dropped: list[str], carried: bool) -> str | None:
    """How much it shall think; what is not said as it was is named."""
    wanted = asked.output_config.effort if asked.output_config else None
    found = EFFORTS.get(wanted) if wanted and carried else None
    if found != wanted:
        dropped.append("output_config.effort")
    thinking = asked.thinking
    if thinking is None:
        return found
    if thinking.type == "enabled" and carried:
        if found is not None:
            dropped.append("thinking.budget_tokens")
        return found or _by_budget(thinking.budget_tokens)
    if thinking.type == "adaptive" and found is not None:
        return found
    dropped.append("thinking")
    return found if thinking.type != "disabled" else None


def _by_budget(tokens: int | None) -> str:
    return next((effort for most, effort in BUDGETS if (tokens or 0) <= most), "high")


def _user(metadata: wire.Metadata | None, dropped: list[str]) -> str | None:
    name = metadata.user_id if metadata else None
    if name is not None and len(name) > LONGEST_USER:
        dropped.append("metadata.user_id")
        return None
    return name
