"""Completions of the provider `tgi`: OpenAI's words to `/generate` and `/generate_stream`, and what comes back."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UpstreamError
from headrace.streaming import EventSplitter
from headrace_tgi.answering import Answering

GENERATE, STREAM = "POST /generate", "POST /generate_stream"
UPON = {"id": 1, "text": " upon", "logprob": -0.5, "special": False}
TOKENS = [UPON, {"id": 2, "text": " a", "logprob": -1.0, "special": False}]
TOP = [[UPON], [{"id": 3, "text": " the", "logprob": -0.9, "special": False}]]


def answer(text: str = " upon a", reason: str = "length", **details: Any) -> dict[str, Any]:
    told = {
        "finish_reason": reason,
        "generated_tokens": 2,
        "seed": 1,
        "prefill": [],
        "tokens": TOKENS,
        "top_tokens": TOP,
    }
    return {"generated_text": text, "details": {**told, **details}}


def token(text: str, index: int = 1, special: bool = False, **more: Any) -> bytes:
    """One event, as TGI writes it: without a blank behind the colon."""
    said = {"index": index, "token": {"id": 7, "text": text, "logprob": -0.5, "special": special}, "top_tokens": []}
    return b"data:" + msgspec.json.encode({**said, "generated_text": None, "details": None, **more}) + b"\n\n"


def last(text: str, reason: str = "length", special: bool = False) -> bytes:
    details = {"finish_reason": reason, "generated_tokens": 4, "input_length": 3, "seed": None}
    return token(text, 9, special, generated_text="all of it", details=details)


def texts(found: list[Any]) -> str:
    return "".join(each["choices"][0]["text"] for each in found if each != "[DONE]" and each["choices"])


async def test_a_whole_answer_is_a_completion(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer(), x_prompt_tokens="3")
        told = (await asking.complete(max_tokens=2)).json()
    assert told.pop("id").startswith("cmpl-")
    assert abs(told.pop("created") - time.time()) < 60
    assert told == {
        "object": "text_completion",
        "model": "m",
        "choices": [{"text": " upon a", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


@pytest.mark.parametrize(
    ("asked", "parameters"),
    [
        ({"max_tokens": 5}, {"do_sample": True, "max_new_tokens": 5}),
        ({"temperature": 0}, {"do_sample": False}),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 4},
            {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4},
        ),
        ({"top_p": 1, "top_k": -1}, {"do_sample": True}),
        ({"stop": "x"}, {"do_sample": True, "stop": ["x"]}),
        ({"stop": ["x", "y"], "seed": 3}, {"do_sample": True, "stop": ["x", "y"], "seed": 3}),
        ({"logprobs": 2}, {"do_sample": True, "top_n_tokens": 2}),
        (
            {"repetition_penalty": 1.1, "typical_p": 0.9},
            {"do_sample": True, "repetition_penalty": 1.1, "typical_p": 0.9},
        ),
        ({"adapter_id": "style", "seed": None}, {"do_sample": True, "adapter_id": "style"}),
    ],
)
async def test_parameters_are_put_into_tgi_s_words(kit: Any, asked: Any, parameters: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer())
        await asking.complete(**asked)
        assert asking.sent == {"inputs": "Once", "parameters": {"details": True, **parameters}}


async def test_what_cannot_be_said_is_named(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer())
        told = await asking.complete(suffix="end", logit_bias={"1": 1}, best_of=3, user="me", presence_penalty=0)
    assert told.headers["x-headrace-dropped"] == "suffix, logit_bias, user, best_of"


@pytest.mark.parametrize(
    ("asked", "field"),
    [({"n": 2}, "n"), ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [1, 2]}, "prompt"), ({"top_k": "x"}, "top_k")],
)
async def test_what_would_change_the_meaning_is_refused(kit: Any, asked: Any, field: str) -> None:
    async with kit.asking("tgi") as asking:
        told = await asking.complete(**asked)
        assert (told.status_code, told.json()["error"]["param"], asking.engine.asked) == (400, field, [])


async def test_log_probabilities_are_openai_s(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer())
        told = (await asking.complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert told == {
        "tokens": [" upon", " a"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{" upon": -0.5}, {" the": -0.9}],
        "text_offset": [0, 5],
    }


async def test_an_echoed_prompt_stands_before_the_answer(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer())
        assert (await asking.complete(echo=True)).json()["choices"][0]["text"] == "Once upon a"


async def test_a_stop_is_no_part_of_a_whole_answer(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[GENERATE] = kit.whole(answer(" upon END", "stop_sequence"))
        (choice,) = (await asking.complete(stop=["END"])).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" upon ", "stop")


# --- Streams ---


async def test_a_stream_is_one_of_completions(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" upon"), token(" a"), last("</s>", "eos_token", special=True))
        reply = await asking.complete(stream=True, stream_options={"include_usage": True})
    *told, end, usage, done = kit.events(reply)
    assert [each["choices"][0]["text"] for each in told] == [" upon", " a"]
    assert (end["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    assert (usage["choices"], usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == ([], 3, 4)


async def test_token_counts_are_told_only_if_asked_for(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" upon"), last(" a"))
        assert not any("usage" in each for each in kit.events(await asking.complete(stream=True)))


async def test_a_stop_is_no_part_of_a_stream_however_it_is_cut_into_tokens(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" up E"), token("on E"), token("N"), last("D", "stop_sequence"))
        told = kit.events(await asking.complete(stream=True, stop="END"))
    assert texts(told) == " up Eon "


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_without_its_last_token_ends_with_an_error(kit: Any, cut: bool) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" upon"), cut=cut)
        told = kit.events(await asking.complete(stream=True))
    assert (told[0]["choices"][0]["text"], told[-1]["error"]["code"]) == (" upon", "stream_truncated")


@pytest.mark.parametrize("name", [b"", b"event:error\n"])
async def test_an_error_event_ends_a_stream(kit: Any, name: bytes) -> None:
    error = name + b'data:{"error":"Request failed during generation: x","error_type":"generation"}\n\n'
    async with kit.asking("tgi") as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" upon"), error)
        assert kit.events(await asking.complete(stream=True))[-1]["error"]["code"] == "stream_truncated"


async def test_a_stream_that_breaks_is_gone_on_with_in_tgi_s_words(kit: Any) -> None:
    async with kit.asking(
        "tgi", model_table={"midstream": "resume", "retry": {"rounds": 2, "backoff": 0.01}}
    ) as asking:
        asking.engine.says[STREAM] = kit.chunked(token(" upon"), cut=True)
        await asking.complete(stream=True)
        assert asking.engine.asked[1][1]["inputs"] == "Once upon"


@given(st.lists(st.text(alphabet="aEND ", min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 40))
def test_a_stream_says_what_a_whole_answer_says_wherever_it_is_cut(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    reason = "stop_sequence" if text.endswith("END") else "length"
    said = b"".join((*map(token, pieces[:-1]), last(pieces[-1], reason)))
    splitter, answering = EventSplitter(), Answering("x", "m", ["END", "ND"])
    chunks = [said[at : at + size] for at in range(0, len(said), size)]
    out = b"".join(answering.feed(event.data) for chunk in chunks for event in splitter.feed(chunk))
    told = [line[6:] for line in out.split(b"\n") if line.startswith(b"data: {")]
    whole = Answering("x", "m", ["END", "ND"]).whole(msgspec.json.encode(answer(text, reason)), 3)
    assert texts([msgspec.json.decode(line) for line in told]) == msgspec.json.decode(whole)["choices"][0]["text"]


@pytest.mark.parametrize("content", [b"[]", b'{"generated_text":"x"}', b"<html>"])
def test_what_is_no_answer_of_tgi_s_is_an_error(content: bytes) -> None:
    with pytest.raises(UpstreamError):
        Answering("x", "m", []).whole(content, 1)


def test_a_token_costs_little() -> None:
    answering, data = Answering("x", "m", ["\n\n", "END"]), token(" upon")[5:].strip()
    started = time.perf_counter()
    for _ in range(2000):
        answering.feed(data)
    each = (time.perf_counter() - started) / 2000 * 1e6
    print(f"{each:.1f} µs a token")
    assert each < 200
