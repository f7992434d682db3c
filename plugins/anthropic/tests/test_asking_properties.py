"""Requests of any shape: nothing of them is lost silently, and what both sides know comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import chat
from headrace_anthropic.asking import as_chat
from headrace_anthropic.config import Options
from headrace_anthropic.from_chat import as_messages

PLAIN = frozenset(("type", "role", "media_type"))
"""Keys whose values are no content."""
REQUESTS = settings(max_examples=150, deadline=None)
words = st.text(st.characters(codec="utf-8", categories=("L", "N", "Z", "P", "S")), min_size=1, max_size=8).filter(
    str.strip
)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 99) | words,
    lambda s: st.lists(s, max_size=2) | st.dictionaries(names, s, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(names, anything, max_size=3)


def block(kind: str, needed: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    more = {"cache_control": st.just({"type": "ephemeral", "ttl": "5m"}), "unheard_of": words, **(optional or {})}
    return st.fixed_dictionaries({"type": st.just(kind), **needed}, optional=more)


def source(kind: str, **needed: Any) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(kind), **needed}, optional={"unheard_of": words})


texts = block("text", {"text": words}, {"citations": st.lists(objects, min_size=1, max_size=1)})
images = block(
    "image", {"source": source("base64", media_type=st.just("image/png"), data=words) | source("url", url=words)}
)
plain = source("text", media_type=st.just("text/plain"), data=words)
pdfs = source("base64", media_type=st.just("application/pdf"), data=words)
inside = source("content", content=words | st.lists(texts | images, min_size=1, max_size=2))
documents = block("document", {"source": plain | pdfs | inside}, {"title": words, "context": words})
searches = block("search_result", {"source": words, "title": words, "content": st.lists(texts, max_size=2)})
content = texts | images | documents | searches
results = block(
    "tool_result", {"tool_use_id": words}, {"content": words | st.lists(content, max_size=2), "is_error": st.booleans()}
)
thoughts = block("thinking", {"thinking": words, "signature": words}) | block("redacted_thinking", {"data": words})
uses = block("tool_use", {"id": words, "name": names, "input": objects})
users = st.fixed_dictionaries(
    {"role": st.just("user"), "content": words | st.lists(content | results, min_size=1, max_size=4)},
    optional={"unheard_of": words},
)
assistants = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": words | st.lists(texts | thoughts | uses, min_size=1, max_size=4)}
)
tools = st.fixed_dictionaries(
    {"name": names, "input_schema": objects},
    optional={"description": words, "cache_control": objects, "unheard_of": words},
)
requests = st.fixed_dictionaries(
    {
        "model": words,
        "max_tokens": st.integers(1, 10**6),
        "messages": st.tuples(st.lists(users | assistants, max_size=4), users).map(lambda each: [*each[0], each[1]]),
    },
    optional={
        "system": words | st.lists(texts, max_size=3),
        "tools": st.lists(tools, min_size=1, max_size=2),
        "stop_sequences": st.lists(words, min_size=1, max_size=2),
        "metadata": st.fixed_dictionaries({"user_id": words}, optional={"unheard_of": words}),
        "output_format": st.fixed_dictionaries({"type": st.just("json_schema"), "schema": objects}),
        "service_tier": words,
        "context_management": objects,
        "unheard_of": words,
    },
)


def marked(value: Any, count: Iterator[int], path: tuple[str, ...] = ()) -> Any:
    """The same with texts that stand there once."""
    if isinstance(value, dict):
        return {name: each if name in PLAIN else marked(each, count, (*path, name)) for name, each in value.items()}
    if isinstance(value, list):
        return [marked(each, count, path) for each in value]
    return f"<{next(count)}>" if isinstance(value, str) else value


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every text with where it stands."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from () if name in PLAIN else leaves(each, (*path, name))
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, path)
    elif isinstance(value, str):
        yield value, path


def is_named(path: tuple[str, ...], dropped: tuple[str, ...]) -> bool:
    """Whether what stands here is among what was left out."""
    parts = [name.split(".") for name in dropped]
    return any(path[0] == part[0] and part[-1] in (*path, "redacted_thinking") for part in parts)


def counter() -> Iterator[int]:
    number = 100
    while True:
        number += 1
        yield number


@REQUESTS
@given(requests)
def test_every_text_of_a_request_is_in_the_chat_or_named(request: Any) -> None:
    request = marked(request, counter())
    body, dropped = as_chat(json.dumps(request).encode())
    said = json.dumps(json.loads(body), ensure_ascii=False).replace("\\", "")
    lost = [(text, path) for text, path in leaves(request) if text not in said and not is_named(path, dropped)]
    assert lost == []


@REQUESTS
@given(requests)
def test_a_chat_is_made_of_every_request(request: Any) -> None:
    body, _ = as_chat(json.dumps(request).encode())
    asked = msgspec.json.decode(body, type=chat.Request)
    assert asked.messages[-1] is not None
    assert not isinstance(asked.messages[-1], chat.Assistant)
    assert (asked.model, asked.max_tokens) == (request["model"], request["max_tokens"])


@REQUESTS
@given(requests)
def test_calls_are_followed_by_their_results_at_once(request: Any) -> None:
    body, _ = as_chat(json.dumps(request).encode())
    roles = [message["role"] for message in json.loads(body)["messages"]]
    assert ("user", "tool") not in set(pairwise(roles))


# --- what both sides know ---

said = st.fixed_dictionaries({"type": st.just("text"), "text": words})
shown = st.fixed_dictionaries(
    {
        "type": st.just("image"),
        "source": st.fixed_dictionaries({"type": st.just("url"), "url": st.just("https://a.b/c")}),
    }
)
used = st.fixed_dictionaries({"type": st.just("tool_use"), "id": names, "name": names, "input": objects})
returned = st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": names, "content": words})
exchanges = st.lists(
    st.tuples(
        st.tuples(st.lists(returned, max_size=2), st.lists(shown, max_size=1), st.lists(said, min_size=1, max_size=1)),
        st.tuples(st.lists(said, min_size=1, max_size=1), st.lists(used, max_size=2)),
    ),
    max_size=3,
)
known = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 10**6), "exchanges": exchanges, "last": words},
    optional={
        "system": words,
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(1, 99),
        "stream": st.just(True),
        "stop_sequences": st.lists(words, min_size=1, max_size=2),
        "metadata": st.fixed_dictionaries({"user_id": words}),
        "tools": st.lists(
            st.fixed_dictionaries({"name": names, "input_schema": st.just({"type": "object"})}), min_size=1
        ),
        "output_config": st.fixed_dictionaries(
            {"format": st.fixed_dictionaries({"type": st.just("json_schema"), "schema": st.just({"type": "object"})})}
        ),
    },
)


def short(blocks: list[Any]) -> Any:
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0]["type"] == "text" else blocks


def request_of(given: dict[str, Any]) -> dict[str, Any]:
    """A request in the form in which this plugin writes one."""
    messages = []
    for (results, images, asked), (answer, calls) in given["exchanges"]:
        messages.append({"role": "user", "content": short([*results, *images, *asked])})
        messages.append({"role": "assistant", "content": short([*answer, *calls])})
    messages.append({"role": "user", "content": given["last"]})
    fields = {name: value for name, value in given.items() if name not in ("exchanges", "last")}
    return {"model": "m", "messages": messages, **fields}


@REQUESTS
@given(known)
def test_what_both_sides_know_comes_back_as_it_was(given: Any) -> None:
    request = request_of(given)
    body, dropped = as_chat(json.dumps(request).encode())
    again, lost = as_messages(msgspec.json.decode(body, type=chat.Request), "m", None, Options())
    assert (json.loads(again), dropped, lost) == (request, (), [])
