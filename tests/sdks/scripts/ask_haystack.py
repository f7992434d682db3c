"""Haystack: OpenAIChatGenerator by chats, OpenAIResponsesChatGenerator by responses."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret
from telling import BREAK, GATEWAY, KEY, MODEL, QUESTION, WEATHER, Pieces, Work, tell


@tool
def get_temperature(city: Annotated[str, "Its name"]) -> str:
    """How warm it is in a city."""
    return f"21 degrees in {city}"


def chat(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAIChatGenerator(api_base_url=f"{GATEWAY}/v1", api_key=Secret.from_token(key), model=model)


def responses(model: str = MODEL, key: str = KEY) -> Any:
    return OpenAIResponsesChatGenerator(api_base_url=f"{GATEWAY}/v1", api_key=Secret.from_token(key), model=model)


def ask(generator: Any, talk: list[ChatMessage], **more: Any) -> Any:
    return generator.run(messages=talk, **more)["replies"][0]


def whole(make: Any) -> Any:
    answer = ask(make(), [ChatMessage.from_user(QUESTION)])
    usage = answer.meta["usage"]
    names = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    return {"text": answer.text, "usage": [usage[name] for name in names]}


async def stream(make: Any, question: str = QUESTION) -> Any:
    """Haystack hands pieces to a function."""
    came: list[str] = []

    def run() -> Any:
        ask(make(), [ChatMessage.from_user(question)], streaming_callback=lambda piece: came.append(piece.content))
        yield ""

    found = await Pieces().take(run(), str)
    return {**found, "pieces": [each for each in came if each]}


def tools(make: Any, streamed: bool = False) -> Any:
    agent = Agent(chat_generator=make(), tools=[get_temperature])
    more = {"streaming_callback": lambda piece: None} if streamed else {}
    found = agent.run(messages=[ChatMessage.from_user(WEATHER)], **more)["messages"]
    call = next(message.tool_call for message in found if message.tool_call)
    return {"text": found[-1].text, "call": [call.tool_name, call.arguments]}


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


asyncio.run(tell({"chat": works(chat), "responses": works(responses)}))
