"""LlamaIndex: OpenAILike, its client for any server with OpenAI's chats."""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from telling import BREAK, GATEWAY, KEY, MODEL, QUESTION, WEATHER, Pieces, Work, tell


def get_temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"21 degrees in {city}"


TOOLS = [FunctionTool.from_defaults(get_temperature)]


def chat(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAILike(
        api_base=f"{GATEWAY}/v1", api_key=key, model=model, is_chat_model=True, is_function_calling_model=True
    )


def asking(question: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=question)]


def whole(make: Any) -> Any:
    answer = make().chat(asking(QUESTION))
    return {
        "text": answer.message.content,
        "usage": [answer.raw.usage.prompt_tokens, answer.raw.usage.completion_tokens],
    }


async def stream(make: Any, question: str = QUESTION) -> Any:
    return await Pieces().take(make().stream_chat(asking(question)), lambda piece: piece.delta)


def tools(make: Any, streamed: bool = False) -> Any:
    model, talk = make(), asking(WEATHER)
    if streamed:
        *_, answer = model.stream_chat_with_tools(TOOLS, chat_history=talk)
    else:
        answer = model.chat_with_tools(TOOLS, chat_history=talk)
    call = model.get_tool_calls_from_response(answer)[0]
    result = get_temperature(**call.tool_kwargs)
    said = ChatMessage(role="tool", content=result, additional_kwargs={"tool_call_id": call.tool_id})
    end = model.chat_with_tools(TOOLS, chat_history=[*talk, answer.message, said])
    return {"text": end.message.content, "call": [call.tool_name, call.tool_kwargs]}


def works(make: Any) -> dict[str, Work]:
    return {
        "whole": partial(whole, make),
        "stream": partial(stream, make),
        "tools": partial(tools, make),
        "streamed_tools": partial(tools, make, streamed=True),
        "unknown_model": partial(whole, partial(make, model="gpt-99")),
        "wrong_key": partial(whole, partial(make, key="hr-wrong")),
        "cut": partial(stream, make, BREAK),
    }


asyncio.run(tell({"chat": works(chat)}))
