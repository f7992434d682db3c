"""Pydantic AI: an agent, which calls its tool itself, by chats, responses and messages."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from pydantic_ai import Agent, ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from telling import BREAK, GATEWAY, KEY, MODEL, QUESTION, WEATHER, Pieces, Work, tell


def chat(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{GATEWAY}/v1", api_key=key))


def responses(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAIResponsesModel(model, provider=OpenAIProvider(base_url=f"{GATEWAY}/v1", api_key=key))


def messages(model: str = MODEL, key: str = KEY) -> Any:
    return AnthropicModel(model, provider=AnthropicProvider(base_url=GATEWAY, api_key=key))


async def whole(make: Any) -> Any:
    result = await Agent(make()).run(QUESTION)
    usage = result.usage() if callable(result.usage) else result.usage
    return {"text": result.output, "usage": [usage.input_tokens, usage.output_tokens]}


async def stream(make: Any, question: str = QUESTION) -> Any:
    async with Agent(make()).run_stream(question) as result:
        return await Pieces().take(result.stream_text(delta=True, debounce_by=None), str)


async def tools(make: Any, streamed: bool = False) -> Any:
    agent = Agent(make())

    @agent.tool_plain
    def get_temperature(city: str) -> str:
        """How warm it is in a city."""
        return f"21 degrees in {city}"

    if streamed:
        async with agent.run_stream(WEATHER) as result:
            text = await result.get_output()
    else:
        result = await agent.run(WEATHER)
        text = result.output
    parts = [part for message in result.all_messages() for part in message.parts]
    call = next(part for part in parts if isinstance(part, ToolCallPart))
    return {"text": text, "call": [call.tool_name, call.args_as_dict()]}


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


asyncio.run(tell({"chat": works(chat), "responses": works(responses), "messages": works(messages)}))
