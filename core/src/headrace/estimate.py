"""How many tokens a request may cost, before it is known: what limits, budgets and queues reckon with."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from .dialects import ONE, ChatPeek
from .errors import GatewayError, InvalidRequest, UpstreamError
from .providers import CountsPrompts
from .weighing import BYTES_PER_TOKEN, PICTURE_TOKENS

if TYPE_CHECKING:
    from .dialects import Peek
    from .exchange import Exchange, Usage
    from .gateway import Gateway

logger = logging.getLogger("headrace.estimate")

_ONE_PROMPT = re.compile(rb'\s*(?:"|\[\s*[-0-9\]])')
"""A text, or the tokens of one."""
LARGE_LIST = 65_536
"""Bytes of a list of prompts that are not taken apart any more."""
_BETWEEN_PROMPTS = re.compile(rb'["\]]\s*,\s*["\[]')
"""Between two texts, or two lists of tokens. Within a text these quotes would be escaped."""
KEPT = 4096
"""Callers, by model, whose averages are remembered."""
LEAST_RATE, MOST_RATE = 1 / 32, 1.0
"""Of tokens to bytes."""
WEIGHT = 0.1
"""Of one request in the moving average."""
COUNT_SECONDS = 0.5
"""For so long a request may wait until a backend has counted its prompt."""
MARGIN = 1.1
"""Reserved beyond the average: prompts differ."""


class Estimator:
    """Prompt tokens by the body's length, as each model's own usage shows them: a few bytes make a token."""

    def __init__(self) -> None:
        self._tokens_per_byte: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._cannot_count: set[str] = set()
        """Targets that have been told of."""

    def prompt(self, exchange: Exchange) -> int:
        """Tokens of the prompt: as counted, or a tenth more than this caller's average for the model says."""
        if exchange.prompt_tokens is not None:
            return exchange.prompt_tokens
        found = exchange.prompt_estimate
        if found is None:
            rate = self._tokens_per_byte.get(_who(exchange), 1 / BYTES_PER_TOKEN)
            text, pictures = exchange.measure
            found = exchange.prompt_estimate = math.ceil((text * rate + pictures * PICTURE_TOKENS) * MARGIN)
        return found

    async def count(self, exchange: Exchange, gateway: Gateway) -> None:
        """Have the prompt counted by the model's first backend, if it can do so within COUNT_SECONDS."""
        model = exchange.model
        if exchange.prompt_tokens is not None or model is None:
            return
        from .translation import asked_of

        target = model.targets[0]
        provider = gateway.providers[target.provider]
        try:
            if not isinstance(provider, CountsPrompts):
                raise UpstreamError(f"The provider {target.provider!r} cannot count tokens.")
            async with asyncio.timeout(COUNT_SECONDS):
                exchange.prompt_tokens = await provider.count_prompt(asked_of(exchange, target, provider), target)
        except (GatewayError, TimeoutError) as error:
            if target.name not in self._cannot_count:
                self._cannot_count.add(target.name)
                logger.warning("prompts are estimated: target %s does not count them: %s", target.name, error or "late")
        else:
            self._cannot_count.discard(target.name)

    def learn(self, exchange: Exchange, usage: Usage) -> None:
        """The backend has counted: the caller's next estimate for its model is the better for it. What others send is
        of no matter: nobody can make their requests look dear."""
        exchange.prompt_estimate = None
        size = exchange.text_bytes
        if usage.estimated or not usage.prompt_tokens or not size or exchange.pictures:
            return
        who, seen = _who(exchange), min(max(usage.prompt_tokens / size, LEAST_RATE), MOST_RATE)
        before = self._tokens_per_byte.pop(who, None)
        self._tokens_per_byte[who] = seen if before is None else before + WEIGHT * (seen - before)
        if len(self._tokens_per_byte) > KEPT:
            self._tokens_per_byte.popitem(last=False)


def answer_tokens(exchange: Exchange, default: int) -> int:
    """Tokens of the answer at most, of all answers that are asked for; `default` if the request sets no limit."""
    if exchange.endpoint.name == "embeddings":
        return 0
    asked, answers = demand(exchange)
    return (asked or default) * answers


def demand(exchange: Exchange) -> tuple[int, int]:
    """How long an answer may be, and how many of them are asked for. Paid for each request, once."""
    found = exchange.demand
    if found is None:
        peek = exchange.peek
        if type(peek) is ChatPeek:  # nearly all are
            one, other = peek.max_completion_tokens or 0, peek.max_tokens or 0
            answers = 1 if peek.n is ONE else _count(peek.n)
        else:
            one, other = getattr(peek, "max_completion_tokens", None) or 0, getattr(peek, "max_tokens", None) or 0
            answers = _answers(peek)
        most = one if one > other else other
        found = exchange.demand = most if most > 0 else 0, answers
    return found


def asked_tokens(exchange: Exchange) -> int:
    """`max_tokens` of the request, by either of its names; 0 if it sets no limit."""
    return demand(exchange)[0]


KNOWN = frozenset(("max_tokens", "max_completion_tokens", "n", "best_of", "model"))
LIKE_THEM = KNOWN | {
    *("n_predict", "num_predict", "max_new_tokens", "max_length", "max_output_tokens", "n_cmpl"),
    "num_return_sequences",
}
"""Names by which some server or other knows how long an answer may be; some do not look at their case."""


HARMLESS = KNOWN | {"messages", "prompt", "input", "stream", "stream_options", "temperature", "top_p", "tools", "seed"}
"""What most requests have, and none of them."""


def check_fields(exchange: Exchange) -> None:
    """Where tokens are limited, a request says what it wants by one name, in one spelling.

    Raises:
        InvalidRequest: it has a field that some backend may take for a limit of its own.
    """
    if exchange.fields_checked:
        return
    for name in exchange.fields.keys() - HARMLESS:
        if name.casefold() in LIKE_THEM and name not in exchange.endpoint.known:
            raise InvalidRequest(f"The field {name!r} cannot be reckoned with: say max_tokens, n or model.", param=name)
    exchange.fields_checked = True


def choices(exchange: Exchange) -> int:
    """How many answers are asked for: `n`, or `best_of`, to each prompt."""
    return demand(exchange)[1]


def _answers(peek: Peek | None) -> int:
    n, best_of = getattr(peek, "n", ONE), getattr(peek, "best_of", ONE)
    each = 1 if n is ONE and best_of is ONE else max(_count(n), _count(best_of))
    prompt = getattr(peek, "prompt", None)
    return each if prompt is None else each * _prompts(bytes(prompt))


def _count(raw: msgspec.Raw) -> int:
    """A number of answers, in whatever way it is written; 1 if it is none: then the backend refuses it."""
    try:
        return int(min(max(float(bytes(raw)), 1.0), 1e18))
    except ValueError:
        return 1


def _prompts(raw: bytes) -> int:
    """How many prompts a completion has: one text, one list of tokens, or a list of either."""
    if _ONE_PROMPT.match(raw):
        return 1
    if len(raw) > LARGE_LIST:  # to decode them would hold up everybody
        return 1 + sum(1 for _ in _BETWEEN_PROMPTS.finditer(raw))
    return len(msgspec.json.decode(raw, type=list[msgspec.Raw]))


def spent(exchange: Exchange, reserved: int) -> int:
    """Tokens that a request has taken, at its end: as the backend counted them; none if no backend began an answer;
    all that was reserved if nobody knows, as of a whole answer that the client did not wait for."""
    if not exchange.attempts:
        return 0
    usage, failed = exchange.usage, exchange.attempts[-1].reporting is not None
    if usage is not None and not (usage.estimated and failed):  # such an estimate knows nothing of the answer
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        return (prompt if prompt > 0 else 0) + (answer if answer > 0 else 0)  # whoever has read them
    if usage is not None:
        return reserved
    return 0 if failed or (exchange.status or 0) >= 400 else reserved


def _who(exchange: Exchange) -> tuple[str, str]:
    return (
        exchange.principal.id if exchange.principal else "",
        exchange.model.name if exchange.model else "",
    )
