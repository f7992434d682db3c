"""How long plugins take in each hook, and how often they fail. What waits, for a store or in a queue, is counted, too.

`HookTimes.wrap` is called once for each implementation, when the hooks are compiled; it costs each call half a
microsecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.errors import GatewayError
from headrace.kinds import Kind

from . import families

if TYPE_CHECKING:
    from headrace.registry import Hook

    from .counting import Counting
    from .table import Cells


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


class HookTimes:
    """Measures what it has wrapped."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], Times] = {}

    def open(self, counting: Counting) -> None:
        """From now on count where others can see it."""
        for (plugin, hook), times in self._times.items():
            times.open(counting, plugin, hook)

    def wrap(self, plugin: str, hook: Hook, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same, and is measured."""
        times = self._times.setdefault((plugin, hook.name), Times())
        if hook.is_async:
            return _awaited(call, times)
        return _entered(call, times) if hook.kind is Kind.ENTER else _called(call, times)


def _awaited(call: Callable[..., Any], times: Times) -> Callable[..., Any]:
    async def timed(*arguments: Any) -> Any:
        began = perf_counter()
        try:
            return await call(*arguments)
        except GatewayError:
            raise
        except Exception:
            times.errors[0] += 1.0
            raise
        finally:
            times.seconds[0] += perf_counter() - began
            times.calls[0] += 1.0

    return timed


def _called(call: Callable[..., Any], times: Times) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began = perf_counter()
        try:
            return call(*arguments)
        except GatewayError:
            raise
        except Exception:
            times.errors[0] += 1.0
            raise
        finally:
            times.seconds[0] += perf_counter() - began
            times.calls[0] += 1.0

    return timed


def _entered(call: Callable[..., Any], times: Times) -> Callable[..., Any]:
    """Of what is held while a request lasts, the time until it is had."""

    def timed(exchange: Any) -> Any:
        began = perf_counter()
        times.calls[0] += 1.0
        try:
            manager = call(exchange)
        except GatewayError:
            raise
        except Exception:
            times.errors[0] += 1.0
            raise
        if manager is not None:
            return _Entering(manager, times, began)
        times.seconds[0] += perf_counter() - began
        return None

    return timed


class _Entering:
    """Enters and leaves what a plugin holds. Leaving is the plugin's own: nobody waits for it."""

    __slots__ = ("__aexit__", "_began", "_manager", "_times")

    def __init__(self, manager: AbstractAsyncContextManager[None], times: Times, began: float) -> None:
        self._manager, self._times, self._began = manager, times, began
        self.__aexit__ = manager.__aexit__

    async def __aenter__(self) -> None:
        try:
            await self._manager.__aenter__()
        except GatewayError:
            raise
        except Exception:
            self._times.errors[0] += 1.0
            raise
        finally:
            self._times.seconds[0] += perf_counter() - self._began
