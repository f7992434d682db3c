"""How the implementations of one hook combine.

A hook's kind and colour (sync or async) are part of its specification: `@spec(Kind.FIRST)` on the function in
`hookspecs.py` fixes both, and `registry.py` refuses an implementation that differs.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import pluggy

PROJECT = "headrace"
"""The name under which pluggy keeps our hooks."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's method as the implementation of the hook of the same name."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Kind(enum.Enum):
    """The six ways in which implementations combine."""

    FIRST = "first"
    """Asked in order until one answers with something other than None; the rest are not asked."""
    EACH = "each"
    """All are called in order; an exception stops the walk."""
    NOTIFY = "notify"
    """All are called in order; an exception is logged and changes nothing."""
    ENTER = "enter"
    """Each may return a context manager; all are entered in order and left in reverse order."""
    COLLECT = "collect"
    """All are called in order; the answers that are not None make a list."""
    CHAIN = "chain"
    """Each gets what the one before it returned; None means unchanged."""


def spec(kind: Kind) -> Callable[[Function], Function]:
    """Declare a hook of the given kind. Its colour is that of the decorated function."""

    def mark(function: Function) -> Function:
        function.headrace_kind = kind  # type: ignore[attr-defined]
        function.headrace_async = inspect.iscoroutinefunction(function)  # type: ignore[attr-defined]
        return pluggy.HookspecMarker(PROJECT)(function)

    return mark
