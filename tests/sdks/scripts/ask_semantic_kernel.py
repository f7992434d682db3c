"""Semantic Kernel: OpenAIChatCompletion with a client of OpenAI's; the kernel calls the tool itself."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from openai import AsyncOpenAI
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory, FunctionCallContent
from semantic_kernel.functions import kernel_function
from telling import BREAK, GATEWAY, KEY, MODEL, QUESTION, WEATHER, Pieces, Work, tell


class Weather:
    @kernel_function(name="get_temperature", description="How warm it is in a city.")
    def get_temperature(self, city: str) -> str:
        return f"21 degrees in {city}"


def chat(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAIChatCompletion(ai_model_id=model, async_client=AsyncOpenAI(base_url=f"{GATEWAY}/v1", api_key=key))


def asking(question: str) -> ChatHistory:
    history = ChatHistory()
    history.add_user_message(question)
    return history


async def whole(make: Any) -> Any:
    answer = await make().get_chat_message_content(asking(QUESTION), OpenAIChatPromptExecutionSettings())
    usage = answer.metadata["usage"]
    return {"text": str(answer), "usage": [usage.prompt_tokens, usage.completion_tokens]}


async def stream(make: Any, question: str = QUESTION) -> Any:
    pieces = make().get_streaming_chat_message_content(asking(question), OpenAIChatPromptExecutionSettings())
    return await Pieces().take(pieces, str)


async def tools(make: Any, streamed: bool = False) -> Any:
    kernel, history = Kernel(), asking(WEATHER)
    kernel.add_plugin(Weather(), "weather")
    settings = OpenAIChatPromptExecutionSettings(function_choice_behavior=FunctionChoiceBehavior.Auto())
    if streamed:
        pieces = make().get_streaming_chat_message_content(history, settings, kernel=kernel)
        text = "".join([str(piece) async for piece in pieces])
    else:
        text = str(await make().get_chat_message_content(history, settings, kernel=kernel))
    items = [item for message in history for item in message.items]
    call = next(item for item in items if isinstance(item, FunctionCallContent))
    return {"text": text, "call": [call.function_name, call.parse_arguments()]}


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
