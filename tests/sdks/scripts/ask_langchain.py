"""LangChain: ChatOpenAI by chats and by responses, ChatAnthropic by messages."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from telling import BREAK, GATEWAY, KEY, MODEL, QUESTION, WEATHER, Pieces, Work, tell


@tool
def get_temperature(city: str) -> str:
    """How warm it is in a city."""
    return f"21 degrees in {city}"


def chat(model: str = MODEL, key: str = KEY, **more: Any) -> Any:
    return ChatOpenAI(base_url=f"{GATEWAY}/v1", api_key=key, model=model, **more)


def responses(model: str = MODEL, key: str = KEY) -> Any:
    return ChatOpenAI(base_url=f"{GATEWAY}/v1", api_key=key, model=model, use_responses_api=True)


def messages(model: str = MODEL, key: str = KEY) -> Any:
    return ChatAnthropic(base_url=GATEWAY, api_key=key, model=model)


def whole(make: Any) -> Any:
    answer = make().invoke(QUESTION)
    usage = answer.usage_metadata
    return {"text": answer.text, "usage": [usage["input_tokens"], usage["output_tokens"]]}


async def stream(make: Any, question: str = QUESTION) -> Any:
    return await Pieces().take(make().stream(question), lambda piece: piece.text)


def tools(make: Any, streamed: bool = False) -> Any:
    model, talk = make().bind_tools([get_temperature]), [HumanMessage(WEATHER)]
    if streamed:
        first, *pieces = model.stream(talk)
        answer = sum(pieces, first)
    else:
        answer = model.invoke(talk)
    call = answer.tool_calls[0]
    said = ToolMessage(get_temperature.invoke(call["args"]), tool_call_id=call["id"])
    return {"text": model.invoke([*talk, answer, said]).text, "call": [call["name"], call["args"]]}


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
