"""What policies keep about models."""

from __future__ import annotations

from typing import Any

from headrace_routing.memory import MOST, PerModel


def test_what_is_kept_of_a_model_is_found_again_and_made_anew_for_other_targets(kit: Any) -> None:
    memory, targets = PerModel(lambda given: [each.name for each in given]), kit.targets(3)
    assert memory.of(targets) is memory.of(targets)
    assert memory.of(targets[:2]) == ["gpu0", "gpu1"]


def test_of_targets_that_may_change_nothing_is_kept(kit: Any) -> None:
    memory, targets = PerModel(len), list(kit.targets(3))
    assert memory.of(targets) == 3
    targets.pop()
    assert memory.of(targets) == 2


def test_models_that_come_and_go_are_forgotten(kit: Any) -> None:
    memory, target = PerModel(len), kit.targets(1)[0]
    models = [tuple([target, target][number % 2 :]) for number in range(3 * MOST)]
    for targets in models:
        memory.of(targets)
    assert len(memory._kept) == MOST
    assert memory.of(models[0]) == 2
