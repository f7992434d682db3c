"""A request's prompt as a chain of hashes.

The bytes are taken as the client sent them, nothing is decoded: a conversation grows at its end, so the next turn
begins with the same bytes. Tools come first, as most chat templates render them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import msgspec

    from headrace.exchange import Exchange, Target

PARTS = ("tools", "functions", "system", "instructions", "messages", "prompt", "input")
"""Fields whose text is the prompt, in this order."""
RENDERING = frozenset(
    (
        *("add_generation_prompt", "add_special_tokens", "cache_salt", "chat_template", "chat_template_kwargs"),
        *("continue_final_message", "documents", "mm_processor_kwargs", "reasoning_effort", "truncate_prompt_tokens"),
    )
)
"""Fields that change what a model makes of the same text: with another value it is another prompt. `cache_salt` keeps
the prompts of one tenant apart from those of others, in vLLM's cache and so here."""
UNCACHED = frozenset(("prompt_logprobs", "echo"))
"""Fields for whose sake an engine may compute a prompt that it has cached."""


class Prompt(NamedTuple):
    """What is to be known of a prompt here."""

    chain: list[int]
    size: int
    """Bytes, those included that nobody has looked at."""


def read_prompt(exchange: Exchange, targets: Sequence[Target], block: int, limit: int) -> Prompt:
    """Cut a request's prompt into pieces of `block` bytes, the first `limit` bytes of it. What is left at the end is no
    piece, nor is the bracket or quote that closes it: the next turn goes on there."""
    if exchange.endpoint.name == "embeddings":  # nothing of it is kept in a cache
        return Prompt([], len(exchange.body))
    fields = exchange.fields
    size, text = _text(fields, limit)
    value = _seed(exchange, fields, targets, limit)
    cuts = range(0, (size - 1 if size <= limit else limit) - block + 1, block)
    return Prompt([value := hash((value, text[at : at + block])) for at in cuts], size or 1)


def _text(fields: Mapping[str, msgspec.Raw], limit: int) -> tuple[int, bytes]:
    """The length of a prompt's parts, and their bytes up to the limit."""
    parts = [memoryview(fields[name]) for name in PARTS if name in fields]
    size = sum([part.nbytes for part in parts])
    return size, b"".join([part[:limit] for part in parts])


def _seed(exchange: Exchange, fields: Mapping[str, msgspec.Raw], targets: Sequence[Target], limit: int) -> int:
    """What a prompt's text is not the same without: the model as its backends know it, an adapter for instance."""
    asked = exchange.peek.model if exchange.peek is not None else ""
    models = {target.model for target in targets}
    model = models.pop() or asked if len(models) == 1 else (asked, *sorted(filter(None, models)))
    if RENDERING.isdisjoint(fields):
        return hash((exchange.endpoint.name, model))
    said = frozenset((name, bytes(memoryview(fields[name])[:limit])) for name in RENDERING & fields.keys())
    return hash((exchange.endpoint.name, model, said))
