"""What the scripts of this folder share: where the gateway is, and how they tell what they saw."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

GATEWAY, KEY, MODEL = os.environ["GATEWAY"], os.environ["KEY"], os.environ["MODEL"]
QUESTION = "Count to three."
BREAK = "break off"
WEATHER = "How warm is it in Oslo?"

Work = Callable[[], Any] | Callable[[], Awaitable[Any]]


async def tell(dialects: dict[str, dict[str, Work]]) -> None:
    """Do everything, each whatever became of the others, and print what was seen."""
    found = {name: {kind: await _done(work) for kind, work in works.items()} for name, works in dialects.items()}
    print(json.dumps(found))


async def _done(work: Work) -> Any:
    try:
        said = work()
        return await said if inspect.isawaitable(said) else said
    except Exception as error:
        return {"error": type(error).__name__, "text": _told(error)}


def _told(error: BaseException | None) -> str:
    """What an exception says, and those it came from."""
    return "" if error is None else f"{error}\n{_told(error.__cause__)}"


class Pieces(list[str]):
    """What came of a stream; says so too if it broke."""

    async def take(self, stream: Any, text: Callable[[Any], str | None]) -> Any:
        """Read a stream, of either kind, to its end."""
        try:
            if hasattr(stream, "__aiter__"):
                async for each in stream:
                    self._add(text(each))
            else:
                for each in stream:
                    self._add(text(each))
        except Exception as error:
            return {"pieces": self, "error": type(error).__name__, "text": _told(error)}
        return {"pieces": self}

    def _add(self, text: str | None) -> None:
        if text:
            self.append(text)
