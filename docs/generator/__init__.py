"""The generated pages: each is a function that returns the whole page, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import cli, configuration, errors, hooks, objects

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/hooks.md": hooks.page,
    "reference/objects.md": objects.page,
    "reference/configuration.md": configuration.page,
    "reference/cli.md": cli.page,
    "reference/errors.md": errors.page,
}
"""By path below `docs/`."""

__all__ = ["PAGES"]
