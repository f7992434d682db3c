"""Properties of the key: different requests never share one, the same ones do however they are written."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.dialects import OPENAI_ENDPOINTS, ChatPeek, Endpoint
from headrace.exchange import Exchange, Principal
from headrace_cache.key import Keys, Unclear, keys_of, read, tenant_of

CHAT = OPENAI_ENDPOINTS["/v1/chat/completions"]
SERVED = [["openai", "m"]]
TENANT = ("key", "a")

texts = st.text(max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(
    st.sampled_from(["model", "messages", "seed", "stream_options", "tools", "x", "é"]) | texts, values
)


def exchange(body: bytes = b"{}", endpoint: Endpoint = CHAT, **headers: str) -> Exchange:
    given_ = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"headers": given_, "method": "POST", "path": endpoint.path, "client": ("127.0.0.1", 1)}
    return Exchange(id="1", endpoint=endpoint, scope=scope, body=body)


def key(body: Any) -> str:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return keys(encoded).own


def keys(encoded: bytes, streaming: bool = False, endpoint: Endpoint = CHAT) -> Keys:
    asked = exchange(encoded, endpoint)
    asked.peek = ChatPeek(model="m", messages=msgspec.Raw(b"[]"), stream=streaming)
    return keys_of(asked, read(encoded), TENANT, SERVED)


def typed(value: Any) -> Any:
    """Told apart as JSON tells apart: 1, 1.0 and true are equal to Python."""
    if isinstance(value, dict):
        return {name: typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return (type(value).__name__, repr(value)) if isinstance(value, float) else (type(value).__name__, value)


def shuffled(value: Any, random: Any) -> Any:
    """The same, its members in another order."""
    if isinstance(value, list):
        return [shuffled(inner, random) for inner in value]
    if not isinstance(value, dict):
        return value
    pairs = [(name, shuffled(inner, random)) for name, inner in value.items()]
    random.shuffle(pairs)
    return dict(pairs)


@given(bodies, bodies)
@settings(deadline=None, max_examples=50)
def test_different_bodies_never_share_a_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    one.pop("stream", None)
    other.pop("stream", None)
    assert (key(one) == key(other)) == (typed(one) == typed(other))


@given(bodies, st.sampled_from(["user", "x", "new"]), values)
@settings(deadline=None, max_examples=50)
def test_one_more_field_makes_another_key(body: dict[str, Any], name: str, value: Any) -> None:
    if typed(body.get(name)) != typed(value) or name not in body:
        assert key(body) != key({**body, name: value})


@given(bodies, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 2]))
@settings(deadline=None, max_examples=50)
def test_the_same_body_written_otherwise_has_the_same_key(
    body: dict[str, Any], random: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(shuffled(body, random), ensure_ascii=ascii_only, indent=indent)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return  # half a character stands in a body as an escape alone
    assert key(encoded) == key(body)


@given(st.lists(st.tuples(texts, values), min_size=2, max_size=4))
@settings(deadline=None, max_examples=30)
def test_members_that_stand_there_twice_have_no_key(pairs: list[tuple[str, Any]]) -> None:
    first = json.dumps(pairs[0][0])
    body = "{" + ",".join(f"{first}:{json.dumps(value)}" for _, value in pairs) + "}"
    with pytest.raises(Unclear):
        read(body.encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-0", '{"a":1,"a":1}', "9" * 5000])
def test_what_is_read_in_several_ways_has_no_key(text: str) -> None:
    with pytest.raises(Unclear):
        key(f'{{"x":[{text}]}}'.encode())


def test_numbers_of_different_kinds_are_different() -> None:
    written = (b"1", b"1.0", b"true", b'"1"', b"[1]", b"10e-11", b"-1", b"null", b'"true"')
    assert len({key(b'{"x":%b}' % each) for each in written}) == len(written)


def test_everything_beside_the_body_is_part_of_the_key() -> None:
    body = b'{"model":"m"}'
    plain = exchange(body)
    longest = exchange(body)
    longest.answer_limit = 5
    found = {
        keys_of(plain, read(body), TENANT, SERVED),
        keys_of(longest, read(body), TENANT, SERVED),
        keys_of(plain, read(body), ("team", "a"), SERVED),
        keys_of(plain, read(body), TENANT, [["openai", "n"]]),
        keys_of(exchange(body, OPENAI_ENDPOINTS["/v1/completions"]), read(body), TENANT, SERVED),
        keys_of(exchange(body, anthropic_beta="b"), read(body), TENANT, SERVED),
        keys_of(exchange(body, anthropic_version="b"), read(body), TENANT, SERVED),
        keys_of(exchange(body, openai_beta="b"), read(body), TENANT, SERVED),
    }
    assert len(found) == 8


def test_fields_that_are_to_be_ignored_make_no_difference() -> None:
    one, other = b'{"model":"m","user":"a"}', b'{"user":"b","model":"m"}'
    found = [keys_of(exchange(body), read(body), TENANT, SERVED, ("user",)) for body in (one, other)]
    assert found[0] == found[1] and key(one) != key(other)


TOLD = {"include_usage": True}
FORMS: list[dict[str, Any]] = [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": TOLD}]


@given(bodies, st.sampled_from([*FORMS, {"stream_options": {"include_usage": False}}]))
@settings(deadline=None, max_examples=30)
def test_the_forms_of_one_request_know_each_others_keys(body: dict[str, Any], options: dict[str, Any]) -> None:
    body.pop("stream_options", None)
    whole, told = (keys(json.dumps(each).encode(), bool(each is not body)) for each in (body, {**body, **FORMS[3]}))
    assert (whole.other, told.other) == (told.own, whole.own) and whole.own != told.own
    assert keys(json.dumps({**body, **options}).encode(), True).other == whole.own


@pytest.mark.parametrize("options", [{"continuous_usage_stats": True}, {**TOLD, "x": None}, 1, [True]])
def test_streams_that_tell_more_have_no_other_form(options: Any) -> None:
    assert keys(json.dumps({"stream_options": options}).encode(), True).other is None


def test_a_whole_answer_with_options_of_streams_has_no_other_form() -> None:
    assert keys(json.dumps({"stream_options": TOLD}).encode()).other is None


@given(bodies, bodies)
@settings(deadline=None, max_examples=50)
def test_the_other_form_is_never_that_of_a_different_body(one: dict[str, Any], other: dict[str, Any]) -> None:
    for body in (one, other):
        body.pop("stream", None)
    first, second = (json.dumps(body).encode() for body in (one, other))
    plain = {name: value for name, value in other.items() if name != "stream_options"}
    if keys(first).other == keys(second, True).own:
        assert other.get("stream_options") == TOLD and typed(one) == typed(plain)


def test_other_endpoints_have_one_form() -> None:
    assert keys(b"{}", endpoint=OPENAI_ENDPOINTS["/v1/completions"]).other is not None
    assert keys(b"{}", endpoint=OPENAI_ENDPOINTS["/v1/embeddings"]).other is None


names = st.none() | st.sampled_from(["a", "b", "", "team", "key"])


@given(st.sampled_from(["a", "b", "team"]), names, st.sampled_from(["a", "b", "team"]), names)
def test_tenants_share_nothing_unless_they_are_one(
    first: str, team: str | None, second: str, other: str | None
) -> None:
    one, two = Principal(id=first, team=team), Principal(id=second, team=other)
    same_key = first == second
    assert (tenant_of(one, "key") == tenant_of(two, "key")) == same_key
    together = team == other if team or other else same_key
    assert (tenant_of(one, "team") == tenant_of(two, "team")) == together
    assert tenant_of(one, "shared") == tenant_of(two, "shared")


def test_an_infinity_is_never_written() -> None:
    with pytest.raises(Unclear):
        keys_of(exchange(), {"x": math.inf}, TENANT, SERVED)
