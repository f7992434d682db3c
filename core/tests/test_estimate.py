"""What requests may cost, before it is known."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from headrace.dialects import OPENAI, OPENAI_ENDPOINTS
from headrace.errors import InvalidRequest
from headrace.estimate import Estimator, answer_tokens, check_fields, spent
from headrace.exchange import Exchange, Principal, Usage


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
    [
        (b'"a"', 5),
        (b'["a"]', 5),
        (b'["a","b","c"]', 15),
        (b"[1,2,3]", 5),
        (b"[[1,2],[3]]", 10),
        (b" [ 7, 8]", 5),
        (b"[]", 5),
    ],
)
def test_every_prompt_of_a_completion_has_an_answer_of_its_own(prompt: bytes, tokens: int) -> None:
    exchange = asking(b'{"model":"m","prompt":%s,"max_tokens":5}' % prompt, "/v1/completions")
    assert answer_tokens(exchange, default=100) == tokens


def test_a_huge_list_is_not_taken_apart_but_counted_at_its_most() -> None:
    texts = b",".join([b'"a"'] * 400_000)
    exchange = asking(b'{"model":"m","prompt":[%s],"max_tokens":5}' % texts, "/v1/completions")
    assert answer_tokens(exchange, default=100) == 2_000_000


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (CHAT % b"", 100),
        (CHAT % b',"logprobs":false', 100),
        (CHAT % b',"logprobs":null', 100),
        (CHAT % b',"logprobs":true', 75),
        (CHAT % b',"logprobs":true,"top_logprobs":20', 12),
    ],
)
def test_events_that_come_several_at_a_time_are_reckoned_by_their_size(body: bytes, events: int) -> None:
    exchange = asking(body)
    exchange.saw(7, 30_000)
    assert exchange.events == events
    exchange.saw(200, 30_000)
    assert exchange.events == 200


@pytest.mark.parametrize("count", [-5, 2**40, 2**70, 1.5])
def test_no_backend_can_say_a_number_that_is_none_of_tokens(count: float) -> None:
    said = b'{"usage":{"prompt_tokens":%s,"completion_tokens":3}}' % str(count).encode()
    assert OPENAI.usage(said) is None
    assert OPENAI.usage(said.replace(str(count).encode(), b"5")) == Usage(5, 3)


def test_what_one_caller_sends_does_not_make_anothers_prompt_dear() -> None:
    estimator, pictures, text = Estimator(), asking(CHAT % b""), asking(CHAT % b"")
    pictures.principal, text.principal = Principal(id="ada"), Principal(id="carl")
    before = estimator.prompt(text)
    for _ in range(30):
        estimator.learn(pictures, Usage(prompt_tokens=100_000))
    assert estimator.prompt(text) == before
    assert estimator.prompt(pictures) <= len(pictures.body) * 1.2


@pytest.mark.parametrize("field", ["n_predict", "Max_Tokens", "MODEL", "N", "num_predict"])
def test_a_request_that_says_its_length_by_another_name_is_refused(field: str) -> None:
    exchange = asking(CHAT % b',"max_tokens":5,"%s":1' % field.encode())
    with pytest.raises(InvalidRequest, match="cannot be reckoned with"):
        check_fields(exchange)


PICTURE = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}' % (b"iVBORw0KGgo" * 100_000)


def test_a_picture_is_not_taken_for_text() -> None:
    exchange = asking(b'{"model":"m","messages":[{"role":"user","content":[%s]}]}' % PICTURE)
    assert 1500 < Estimator().prompt(exchange) < 2000
    assert 1500 < exchange.estimate(0).prompt_tokens < 2000
    by_address = asking(CHAT.replace(b'"hello"', b'[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]') % b"")
    assert 1500 < Estimator().prompt(by_address) < 2000


def test_an_estimate_of_a_request_that_failed_counts_as_reserved() -> None:
    exchange = asking(CHAT % b"")
    exchange.attempts.append(SimpleNamespace(reporting="it failed"))  # type: ignore[arg-type]
    assert spent(exchange, 500) == 0
    exchange.usage = Usage(10, 0, estimated=True)  # its report was lost
    assert spent(exchange, 500) == 500
    exchange.usage = Usage(10, 7)
    assert spent(exchange, 500) == 17
    exchange.usage = Usage(-1000, 7)
    assert spent(exchange, 500) == 7


def test_one_long_text_in_a_list_is_one_prompt() -> None:
    text = b'say \\", \\" and [1], [2] ' * 20_000
    exchange = asking(
        b'{"model":"m","prompt":["%s"],"max_tokens":5}' % text.replace(b"[1], [2]", b"(1), (2)"), COMPLETIONS
    )
    assert answer_tokens(exchange, default=100) == 5


def test_text_that_looks_like_a_picture_is_text() -> None:
    text = b"base64," + b"A" * 100_000
    exchange = asking(CHAT.replace(b"hello", text) % b',"image_url":0')
    assert Estimator().prompt(exchange) > 25_000


def test_megabytes_are_looked_through_at_once() -> None:
    exchange = asking(CHAT.replace(b"hello", b"A" * 8_000_000) % b',"image_url":0')
    began = time.process_time()
    Estimator().prompt(exchange)
    assert time.process_time() - began < 1


COMPLETIONS = "/v1/completions"
