"""How many tokens a request may cost, before it is known: what limits, budgets and queues reckon with."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from .dialects import CHECKED_BYTES
from .errors import GatewayError, UpstreamError
from .exchange import BYTES_PER_TOKEN
from .providers import CountsPrompts

if TYPE_CHECKING:
    from .exchange import Exchange, Usage
    from .gateway import Gateway

logger = logging.getLogger("headrace.estimate")

_ONE_PROMPT = re.compile(rb'\s*(?:"|\[\s*[-0-9\]])')
"""A text, or the tokens of one."""
MODELS_KEPT = 256
WEIGHT = 0.1
"""Of one request in the moving average."""
COUNT_SECONDS = 0.5
"""For so long a request may wait until a backend has counted its prompt."""
MARGIN = 1.1
"""Reserved beyond the average: prompts differ."""


class Estimator:
    """Prompt tokens by the body's length, as each model's own usage shows them: a few bytes make a token."""

    def __init__(self) -> None:
        self._tokens_per_byte: OrderedDict[str, float] = OrderedDict()
        self._cannot_count: set[str] = set()
        """Targets that have been told of."""

    def prompt(self, exchange: Exchange) -> int:
        """Tokens of the prompt: as counted, or a tenth more than the average says."""
        if exchange.prompt_tokens is not None:
            return exchange.prompt_tokens
        rate = self._tokens_per_byte.get(_model(exchange), 1 / BYTES_PER_TOKEN)
        return math.ceil(len(exchange.body) * rate * MARGIN)

    async def count(self, exchange: Exchange, gateway: Gateway) -> None:
        """Have the prompt counted by the model's first backend, if it can do so within COUNT_SECONDS."""
        model = exchange.model
        if exchange.prompt_tokens is not None or model is None:
            return
        target = model.targets[0]
        provider = gateway.providers[target.provider]
        try:
            if not isinstance(provider, CountsPrompts):
                raise UpstreamError(f"The provider {target.provider!r} cannot count tokens.")
            async with asyncio.timeout(COUNT_SECONDS):
                exchange.prompt_tokens = await provider.count_prompt(exchange, target)
        except (GatewayError, TimeoutError) as error:
            if target.name not in self._cannot_count:
                self._cannot_count.add(target.name)
                logger.warning("prompts are estimated: target %s does not count them: %s", target.name, error or "late")
        else:
            self._cannot_count.discard(target.name)

    def learn(self, exchange: Exchange, usage: Usage) -> None:
        """The backend has counted: the next estimate for its model is the better for it."""
        size = len(exchange.body)
        if usage.estimated or not usage.prompt_tokens or not size:
            return
        model, seen = _model(exchange), usage.prompt_tokens / size
        before = self._tokens_per_byte.pop(model, None)
        self._tokens_per_byte[model] = seen if before is None else before + WEIGHT * (seen - before)
        if len(self._tokens_per_byte) > MODELS_KEPT:
            self._tokens_per_byte.popitem(last=False)


def answer_tokens(exchange: Exchange, default: int) -> int:
    """Tokens of the answer at most, of all answers that are asked for; `default` if the request sets no limit."""
    if exchange.endpoint.name == "embeddings":
        return 0
    return (asked_tokens(exchange) or default) * choices(exchange)


def asked_tokens(exchange: Exchange) -> int:
    """`max_tokens` of the request, by either of its names; 0 if it sets no limit."""
    peek = exchange.peek
    return max(getattr(peek, "max_completion_tokens", None) or 0, getattr(peek, "max_tokens", None) or 0, 0)


def choices(exchange: Exchange) -> int:
    """How many answers are asked for: `n`, or `best_of`, to each prompt."""
    peek = exchange.peek
    each = max(getattr(peek, "n", None) or 1, getattr(peek, "best_of", None) or 1, 1)
    prompt = getattr(peek, "prompt", None)
    return each if prompt is None else each * _prompts(bytes(prompt))


def _prompts(raw: bytes) -> int:
    """How many prompts a completion has: one text, one list of tokens, or a list of either."""
    if _ONE_PROMPT.match(raw):
        return 1
    if len(raw) > CHECKED_BYTES:
        return raw.count(b",") + 1  # as many as there can be: to decode them would hold up everybody
    return len(msgspec.json.decode(raw, type=list[msgspec.Raw]))


def spent(exchange: Exchange, reserved: int) -> int:
    """Tokens that a request has taken, at its end: as the backend counted them; none if no backend began an answer;
    all that was reserved if nobody knows, as of a whole answer that the client did not wait for."""
    if not exchange.attempts:
        return 0
    if exchange.usage is not None:
        return exchange.usage.prompt_tokens + exchange.usage.completion_tokens
    failed = exchange.attempts[-1].reporting is not None
    return 0 if failed or (exchange.status or 0) >= 400 else reserved


def _model(exchange: Exchange) -> str:
    return exchange.model.name if exchange.model else ""
