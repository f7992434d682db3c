"""What can be seen of the predictions: for metrics, and for `GET /admin/prefix`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .known import Known


class TargetStatus(msgspec.Struct, frozen=True):
    """How it stands with one backend."""

    blocks: int
    """Pieces of prompts that are taken to be in its cache."""
    bytes: int
    """Of prompts, that these stand for."""
    predictions: int
    """Requests it was asked of whose prompt something was taken to be in its cache."""
    checked: int
    """Answers to these that said how much was."""
    hits: int
    """Of the answers, those that had about as much cached as predicted, or more."""
    error: float
    """The moving average of what predictions were off by, as a part of the prompt."""
    excess: float
    """The same, where the backend had less than predicted."""
    trusted: bool
    """Whether it is chosen for its cache: not while `excess` is too high."""
    reports: bool
    """Whether it says how much it had cached."""
    prompt_tokens: int
    cached_tokens: int
    """Of all answers with token counts; of one that reports nothing, 0."""
    forgotten: int
    """How often it was found to have lost its cache, by a restart for instance."""


class Status(msgspec.Struct, frozen=True):
    """Everything about the predictions of one worker."""

    worker: int
    blocks: int
    bytes: int
    predictions: int
    checked: int
    hits: int
    targets: dict[str, TargetStatus]


def status(worker: int, known: Sequence[Known], block_bytes: int) -> Status:
    """As it is now."""
    targets = {each.name: _target(each, block_bytes) for each in known}
    return Status(
        worker=worker,
        blocks=sum(each.blocks for each in targets.values()),
        bytes=sum(each.bytes for each in targets.values()),
        predictions=sum(each.predictions for each in targets.values()),
        checked=sum(each.checked for each in targets.values()),
        hits=sum(each.hits for each in targets.values()),
        targets=targets,
    )


def _target(known: Known, block_bytes: int) -> TargetStatus:
    record, blocks = known.record, len(known.blocks)
    return TargetStatus(
        blocks=blocks,
        bytes=blocks * block_bytes,
        predictions=record.predictions,
        checked=record.checked,
        hits=record.hits,
        error=round(record.error, 4),
        excess=round(record.excess, 4),
        trusted=record.trusted,
        reports=record.reports,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        forgotten=known.generation,
    )
