"""What is learnt from requests: who was asked, what came of it, and whether the prediction was right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .policy import STATE, Plan, Visit
from .prompt import UNCACHED

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Outcome, Usage

    from .known import Backends


def begin(attempt: Attempt, backends: Backends, block: int) -> None:
    """A target is asked: from now on requests with the same beginning go there as well."""
    plan: Plan | None = attempt.exchange.state.get(STATE)
    row = plan.row(attempt.target) if plan is not None else None
    if plan is None or row is None:
        return
    known, prompt = row.known, plan.prompt
    times = known.blocks.touch(prompt.chain, backends.clock())
    known.record.predictions += row.depth > 0
    known.work += prompt.size - row.depth * block
    plan.visits[attempt.number] = Visit(known, known.generation, prompt, times)


def end(attempt: Attempt, outcome: Outcome, backends: Backends, block: int) -> None:
    """A target has answered, or not."""
    plan: Plan | None = attempt.exchange.state.get(STATE)
    visit = plan.visits.pop(attempt.number, None) if plan is not None else None
    if visit is None:
        return
    known, chain = visit.known, visit.prompt.chain
    if _has_answered(outcome):
        known.absent = False
        if outcome.usage is not None and not outcome.usage.estimated:
            _compare(attempt, visit, outcome.usage, block)
        known.blocks.confirm(chain, backends.clock())
        return
    known.blocks.drop(chain)
    error = outcome.error
    if error is not None and error.status >= 500 and not outcome.aborted:
        known.absent = True
        if error.code == "unavailable" and not error.reached:  # nobody listens there: it is being restarted
            known.forget()


def _has_answered(outcome: Outcome) -> bool:
    """Whether the prompt has been computed: of an answer that was not waited for, if any of it had come."""
    if outcome.error is not None or outcome.status >= 400:
        return outcome.aborted and outcome.ttft_seconds is not None
    return outcome.completed or outcome.ttft_seconds is not None


def _compare(attempt: Attempt, visit: Visit, usage: Usage, block: int) -> None:
    """Learn from what a backend says was cached.

    If it had less than predicted, the first piece that was missing has been evicted, and so has whatever was used
    before it: engines evict what was used least recently. What this request brought is in the cache by now.
    """
    known, record, size = visit.known, visit.known.record, visit.prompt.size
    if usage.prompt_tokens <= 0 or visit.generation != known.generation:
        return
    record.count(usage.prompt_tokens, usage.cached_tokens, told=usage.tells_cached)
    if not record.reports or not visit.times or _is_odd(attempt):
        return
    cached = min(1.0, usage.cached_tokens / usage.prompt_tokens)
    if not record.check(len(visit.times) * block / size, cached, usage.prompt_tokens):
        missing = min(int(cached * size / block), len(visit.times) - 1)
        known.blocks.forget_until(visit.times[missing])


def _is_odd(attempt: Attempt) -> bool:
    """Whether a prompt's bytes say little about its tokens, or the engine may not use its cache for it."""
    exchange = attempt.exchange
    return exchange.pictures > 0 or not UNCACHED.isdisjoint(exchange.fields)
