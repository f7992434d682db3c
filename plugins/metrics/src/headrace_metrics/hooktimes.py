"""How long plugins take in each hook, and how often they fail. What waits, for a store or in a queue, is counted, too.

`HookTimes.wrap` is called once for each implementation, when the hooks are compiled. Every call is counted; the first
ones are timed each, those after them by sample: looking at the clock costs more than many a hook does.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.kinds import Kind

from . import families

if TYPE_CHECKING:
    from headrace.registry import Hook

    from .counting import Counting
    from .table import Cells

EACH = 100.0
"""So many calls are timed one by one."""
STRIDE = 17.0
"""Of those after them every so-many-th is, and stands for all of these. It is prime: of requests that come in turns not
always the same are seen."""
Call = Callable[..., Any]


class Times:
    """Of one plugin in one hook. Until the table is open they are counted for nobody."""

    __slots__ = ("calls", "errors", "seconds")

    def __init__(self) -> None:
        self.calls: Cells = memoryview(array("d", (0.0,)))
        self.errors: Cells = memoryview(array("d", (0.0,)))
        self.seconds: Cells = memoryview(array("d", (0.0,)))

    def open(self, counting: Counting, plugin: str, hook: str) -> None:
        self.calls = counting.counter(families.HOOK_CALLS, (plugin, hook))
        self.errors = counting.counter(families.HOOK_ERRORS, (plugin, hook))
        self.seconds = counting.counter(families.HOOK_SECONDS, (plugin, hook))

    def add(self, began: float, calls: float) -> None:
        """A call that is timed is over: it stands for so many."""
        self.seconds[0] += (perf_counter() - began) * calls


class HookTimes:
    """Measures what it has wrapped."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], Times] = {}

    def open(self, counting: Counting) -> None:
        """From now on count where others can see it."""
        for (plugin, hook), times in self._times.items():
            times.open(counting, plugin, hook)

    def failed(self, plugin: str, hook: str) -> None:
        """A call ended with a fault."""
        times = self._times.get((plugin, hook))
        if times is not None:
            times.errors[0] += 1.0

    def wrap(self, plugin: str, hook: Hook, call: Call) -> Call:
        """A function that does the same, and is measured."""
        times = self._times.setdefault((plugin, hook.name), Times())
        timed = _entered if hook.kind is Kind.ENTER else _awaited if hook.is_async else _called
        counted = _counted if len(hook.parameters) == 1 else _counted_pair
        return counted(call, times, timed(call, times, 1.0), timed(call, times, STRIDE))


def _counted(call: Call, times: Times, timed: Call, sampled: Call) -> Call:
    def counted(argument: Any) -> Any:
        cells = times.calls
        calls = cells[0] = cells[0] + 1.0
        if calls > EACH:
            return call(argument) if calls % STRIDE else sampled(argument)
        return timed(argument)

    return counted


def _counted_pair(call: Call, times: Times, timed: Call, sampled: Call) -> Call:
    """The same for hooks of two arguments: to pass on whatever comes costs half as much again."""

    def counted(first: Any, second: Any) -> Any:
        cells = times.calls
        calls = cells[0] = cells[0] + 1.0
        if calls > EACH:
            return call(first, second) if calls % STRIDE else sampled(first, second)
        return timed(first, second)

    return counted


def _awaited(call: Call, times: Times, calls: float) -> Call:
    async def timed(*arguments: Any) -> Any:
        began = perf_counter()
        try:
            return await call(*arguments)
        finally:
            times.add(began, calls)

    return timed


def _called(call: Call, times: Times, calls: float) -> Call:
    def timed(*arguments: Any) -> Any:
        began = perf_counter()
        try:
            return call(*arguments)
        finally:
            times.add(began, calls)

    return timed


def _entered(call: Call, times: Times, calls: float) -> Call:
    """Of what is held while a request lasts, the time until it is had."""

    def timed(exchange: Any) -> Any:
        began = perf_counter()
        manager = call(exchange)
        if manager is not None:
            return _Entering(manager, times, began, calls)
        times.add(began, calls)
        return None

    return timed


class _Entering:
    """Enters and leaves what a plugin holds. Leaving is the plugin's own: nobody waits for it."""

    __slots__ = ("__aexit__", "_began", "_calls", "_manager", "_times")

    def __init__(self, manager: AbstractAsyncContextManager[None], times: Times, began: float, calls: float) -> None:
        self._manager, self._times, self._began, self._calls = manager, times, began, calls
        self.__aexit__ = manager.__aexit__

    async def __aenter__(self) -> None:
        try:
            await self._manager.__aenter__()
        finally:
            self._times.add(self._began, self._calls)
