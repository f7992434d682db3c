"""What a policy keeps about each model, and which targets it has to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from headrace.exchange import Exchange, Target

T = TypeVar("T")

MOST = 1024
"""Models that are remembered; those that are found while running may come and go."""


class PerModel(Generic[T]):
    """Something made once for each model's targets.

    A model is known by its tuple of targets, which is the same object for as long as they are the same: with other
    targets it is begun anew. (Its name would not do: the targets of a model are also asked in the name of another
    that falls back on it.)
    """

    def __init__(self, make: Callable[[Sequence[Target]], T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[Sequence[Target], T]] = {}

    def of(self, targets: Sequence[Target]) -> T:
        """What was made for these targets; of anything but a tuple nothing is kept, for it may change."""
        kept = self._kept.get(id(targets))
        if kept is not None and kept[0] is targets:
            return kept[1]
        made = self._make(targets)
        if isinstance(targets, tuple):
            if len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
            self._kept[id(targets)] = (targets, made)
        return made


def rivals(exchange: Exchange, target: Target) -> Sequence[Target]:
    """The targets among which the policy has to choose, this one included: for `why`. A target that the model falls
    back on is compared with all."""
    model = exchange.model
    for targets in (model.primary, model.targets) if model is not None else ():
        if any(each.name == target.name for each in targets):
            return targets
    return (target,)
