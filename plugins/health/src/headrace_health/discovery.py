"""Models that nobody has configured: those that certain backends list."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway

logger = logging.getLogger("headrace.health")
SHOWN = 10


class Discovery:
    """Lets clients ask for what these backends list, each model routed to those of them that list it."""

    def __init__(self, gateway: Gateway, targets: Sequence[Target]) -> None:
        """`targets`: in the order in which they are asked."""
        self._gateway = gateway
        self._targets = {target.name: _without_name(target) for target in targets}
        self._lists: dict[str, tuple[str, ...]] = {}
        self._go_on(gateway.models.found_before)

    def _go_on(self, before: Mapping[str, Sequence[str]]) -> None:
        """What was found before a reload is there until a backend says otherwise."""
        for name, backends in before.items():
            for each in self._targets.keys() & set(backends):
                self._lists[each] = (*self._lists.get(each, ()), name)
        for name in before:
            self._offer(name)

    def listed(self, backend: str, names: tuple[str, ...]) -> None:
        """This is what a backend lists now."""
        if backend not in self._targets or self._lists.get(backend) == names:
            return
        before = set(self._lists.get(backend, ()))
        self._lists[backend] = names
        found = [name for name in names if name not in before and self._offer(name)]
        gone = [name for name in before.difference(names) if self._offer(name)]
        if found or gone:
            logger.info("target %s: models found: %s; gone: %s", backend, _shown(found), _shown(sorted(gone)))

    def _offer(self, name: str) -> bool:
        asked = [target for key, target in self._targets.items() if name in self._lists.get(key, ())]
        return self._gateway.discover(name, asked)


def _without_name(target: Target) -> Target:
    """The same backend, which is sent the name that the client asked for."""
    return msgspec.structs.replace(target, model=None)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "none"
