"""What two requests have in common, by their bytes."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_prefix.prompt import read_prompt

SYSTEM = "You are a helpful assistant. "


def shared(one: Any, other: Any, targets: Any, block: int = 64, limit: int = 65_536) -> int:
    """Pieces that two requests have in common, from the beginning."""
    both = zip(*(read_prompt(each, targets, block, limit).chain for each in (one, other)), strict=False)
    found = [mine == yours for mine, yours in both]
    assert sorted(found, reverse=True) == found  # after a difference nothing is the same any more
    return sum(found)


def test_the_next_turn_begins_with_the_whole_of_this_one(chat: Any, targets: Any) -> None:
    for size in range(300, 450):  # wherever the pieces end
        one = chat("Hello", system=SYSTEM, size=size)
        chain = read_prompt(one, targets(2), 64, 65_536).chain
        assert shared(one, chat("Hello", "And now?", system=SYSTEM, size=size), targets(2)) == len(chain) > 3


def test_a_completion_that_goes_on_begins_with_the_one_before(request_of: Any, targets: Any) -> None:
    text = "Once upon a time there was " * 20
    one, other = (
        request_of({"model": "m", "prompt": each}, "/v1/completions") for each in (text, text + "a king, and he")
    )
    assert shared(one, other, targets(1)) == len(read_prompt(one, targets(1), 64, 65_536).chain) > 5


def test_prompts_that_differ_share_what_comes_before(chat: Any, targets: Any) -> None:
    one, other = chat("Hello", system=SYSTEM, size=600), chat("Good bye", system=SYSTEM, size=600)
    assert shared(one, other, targets(1)) == 10


def test_sampling_does_not_make_another_prompt(chat: Any, targets: Any) -> None:
    one, other = chat("Hi", system=SYSTEM), chat("Hi", system=SYSTEM, temperature=0.1, max_tokens=7, stream=True)
    assert shared(one, other, targets(1)) == len(read_prompt(one, targets(1), 64, 65_536).chain)


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "tenant"},
        {"tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high"},
        {"model": "an-adapter"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_a_model_sees_otherwise_is_another_prompt(chat: Any, targets: Any, fields: dict[str, Any]) -> None:
    assert shared(chat("Hi", system=SYSTEM), chat("Hi", system=SYSTEM, **fields), targets(1)) == 0


def test_the_same_salt_is_the_same_prompt(chat: Any, targets: Any) -> None:
    one, other = chat("Hi", system=SYSTEM, cache_salt="x"), chat("Hi", system=SYSTEM, cache_salt="x")
    assert shared(one, other, targets(1)) > 5


def test_names_that_mean_one_model_to_the_backends_are_one(chat: Any, request_of: Any, targets: Any) -> None:
    from msgspec.structs import replace

    fixed = [replace(target, model="llama") for target in targets(2)]
    one, alias = chat("Hi", system=SYSTEM), chat("Hi", system=SYSTEM, model="gpt-4o")
    assert shared(one, alias, fixed) > 5
    assert shared(one, alias, [fixed[0], *targets(1)]) == 0


def test_tools_are_shared_by_conversations_that_have_nothing_else_in_common(chat: Any, targets: Any) -> None:
    tools = [{"type": "function", "function": {"name": f"tool{number}", "parameters": {}}} for number in range(20)]
    assert shared(chat("Hello", tools=tools), chat("Good bye", tools=tools), targets(1)) > 15


def test_a_picture_counts_by_its_bytes(request_of: Any, targets: Any) -> None:
    def ask(picture: str) -> Any:
        url = {"url": f"data:image/png;base64,{picture * 300}"}
        return request_of({"model": "m", "messages": [{"role": "user", "content": [{"image_url": url}]}]})

    assert shared(ask("abcd"), ask("abcd"), targets(1)) > 15
    assert shared(ask("abcd"), ask("bcde"), targets(1)) <= 1


def test_of_a_huge_prompt_the_beginning_is_looked_at_and_all_of_it_weighed(chat: Any, targets: Any) -> None:
    prompt = read_prompt(chat("Hi", system=SYSTEM, size=500_000), targets(1), 256, 65_536)
    assert len(prompt.chain) == 256 and prompt.size > 500_000


def test_embeddings_have_nothing_that_could_be_cached(request_of: Any, targets: Any) -> None:
    asked = request_of({"model": "m", "input": "a text " * 200}, "/v1/embeddings")
    assert read_prompt(asked, targets(1), 64, 65_536).chain == []
