"""What requests may cost, before it is known."""

from __future__ import annotations

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.estimate import Estimator, answer_tokens
from headrace.exchange import Exchange, Usage


def asking(body: bytes, path: str = "/v1/chat/completions") -> Exchange:
    endpoint = OPENAI_ENDPOINTS[path]
    exchange = Exchange(id="1", endpoint=endpoint, scope={"headers": [], "method": "POST", "path": path}, body=body)
    exchange.peek = endpoint.read(body)
    return exchange


CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello"}]%s}'


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        (b"", 100),
        (b',"max_tokens":7', 7),
        (b',"max_tokens":7,"max_completion_tokens":9', 9),
        (b',"max_tokens":-1', 100),
        (b',"max_tokens":0', 100),
        (b',"max_tokens":7,"n":3', 21),
        (b',"max_tokens":7,"n":-3', 7),
        (b',"max_tokens":7,"\\u006e":3', 21),
    ],
)
def test_the_answer_has_at_most_what_is_asked_for_of_each_choice(more: bytes, tokens: int) -> None:
    assert answer_tokens(asking(CHAT % more), default=100) == tokens


def test_the_best_of_several_costs_all_of_them() -> None:
    exchange = asking(b'{"model":"m","prompt":"a","max_tokens":5,"best_of":4,"n":2}', "/v1/completions")
    assert answer_tokens(exchange, default=100) == 20


def test_embeddings_have_no_answer_to_pay_for() -> None:
    assert answer_tokens(asking(b'{"model":"m","input":"a"}', "/v1/embeddings"), default=100) == 0


def test_a_prompt_is_four_bytes_a_token_until_the_backend_has_counted() -> None:
    estimator, exchange = Estimator(), asking(CHAT % b"")
    size = len(exchange.body)
    assert size / 4 <= estimator.prompt(exchange) <= size / 4 * 1.2
    estimator.learn(exchange, Usage(prompt_tokens=size // 2))
    assert size / 2 <= estimator.prompt(exchange) <= size / 2 * 1.2


def test_what_is_itself_an_estimate_teaches_nothing() -> None:
    estimator, exchange = Estimator(), asking(CHAT % b"")
    before = estimator.prompt(exchange)
    estimator.learn(exchange, Usage(prompt_tokens=10_000, estimated=True))
    assert estimator.prompt(exchange) == before


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [(b'"a"', 5), (b'["a"]', 5), (b'["a","b","c"]', 15), (b"[1,2,3]", 5), (b"[[1,2],[3]]", 10), (b" [ 7, 8]", 5)],
)
def test_every_prompt_of_a_completion_has_an_answer_of_its_own(prompt: bytes, tokens: int) -> None:
    exchange = asking(b'{"model":"m","prompt":%s,"max_tokens":5}' % prompt, "/v1/completions")
    assert answer_tokens(exchange, default=100) == tokens
