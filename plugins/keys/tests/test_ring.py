"""Who sent these headers?"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from hmac import compare_digest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Unauthenticated
from headrace.exchange import Headers
from headrace_keys import keyformat, ring
from headrace_keys.ring import KeyRing
from headrace_keys.store import Store

NAMES = [b"authorization", b"x-api-key", b"host"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("ring") / "keys.db") as store:
        yield store


@pytest.fixture(scope="module")
def keys(store: Store) -> KeyRing:
    return KeyRing()


@pytest.fixture(scope="module")
def create(store: Store, keys: KeyRing) -> Callable[..., bytes]:
    def create(name: str = "alice", **options: Any) -> bytes:
        with store.writing():
            _, key = store.create(name, **options)
        keys.replace(store.records(), development=False)
        return key.reveal().encode()

    return create


@pytest.fixture(scope="module")
def key(create: Callable[..., bytes]) -> bytes:
    return create("alice", role="admin", models=["small", "large"])


def bearer(token: bytes) -> Headers:
    return [(b"host", b"localhost"), (b"authorization", b"Bearer " + token)]


def refusal(keys: KeyRing, headers: Headers) -> str:
    with pytest.raises(Unauthenticated) as caught:
        keys.authenticate(headers)
    assert caught.value.status == 401
    for _, value in headers:
        for part in re.split(rb"[ -]", value):
            assert len(part) < 8 or part.decode("latin-1") not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        (b"authorization", b"Bearer "),
        (b"authorization", b"bearer "),
        (b"authorization", b"BEARER   "),
        (b"x-api-key", b""),
        (b"x-api-key", b" "),
    ],
)
def test_a_valid_key_says_who_asks(keys: KeyRing, key: bytes, name: bytes, prefix: bytes) -> None:
    principal = keys.authenticate([(name, prefix + key)])
    assert principal is not None
    assert principal.id == key.decode().split("-")[1]
    assert (principal.name, principal.role, principal.models) == ("alice", "admin", frozenset({"small", "large"}))
    assert key.decode().split("-")[2] not in repr(principal)


def test_a_key_without_models_may_use_every_model(keys: KeyRing, create: Callable[..., bytes]) -> None:
    principal = keys.authenticate(bearer(create("bob")))
    assert principal is not None and principal.models is None and principal.role == "user"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"localhost")],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer   "), (b"x-api-key", b" ")],
        [(b"authorization", b"Basic YWxpY2U6c2VjcmV0")],
        [(b"authorization", b"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP")],
        [(b"x-api-key", b"sk-ant-api03-somebody-elses-key")],
    ],
)
def test_what_is_no_key_of_ours_is_left_to_other_plugins(keys: KeyRing, headers: Headers) -> None:
    assert keys.authenticate(headers) is None


def test_a_wrong_secret_and_an_unknown_id_are_refused_in_the_same_words(keys: KeyRing, key: bytes) -> None:
    wrong = key[:-1] + (b"a" if key[-1:] != b"a" else b"b")
    unknown = keyformat.whole_key(keyformat.new_id(), keyformat.new_secret()).encode()
    assert refusal(keys, bearer(wrong)) == refusal(keys, bearer(unknown))


def test_a_key_that_was_not_copied_whole_is_refused_with_a_hint(keys: KeyRing, key: bytes) -> None:
    for broken in (key[:-1], key + b"x", key + b",", b"hr-", key.replace(b"-", b"_").replace(b"hr_", b"hr-")):
        assert "copy it again" in refusal(keys, bearer(broken))


def test_a_key_without_the_bearer_scheme_is_refused_with_a_hint(keys: KeyRing, key: bytes) -> None:
    assert "Bearer KEY" in refusal(keys, [(b"authorization", key)])


def test_a_revoked_key_is_refused(keys: KeyRing, store: Store, create: Callable[..., bytes]) -> None:
    key = create("carol")
    with store.writing():
        store.revoke(key.decode().split("-")[1])
    keys.replace(store.records(), development=False)
    assert "revoked" in refusal(keys, bearer(key))
    assert "not valid" in refusal(keys, bearer(key[:-4] + b"0000")), "only its owner learns that it was revoked"


def test_a_key_works_until_it_expires(
    keys: KeyRing, create: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    key = create("dave", expires=now + 60)
    assert keys.authenticate(bearer(key)) is not None
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert "expired" in refusal(keys, bearer(key))


def test_a_development_key_counts_only_where_it_is_switched_on(
    keys: KeyRing, store: Store, create: Callable[..., bytes]
) -> None:
    key = create("development", development=True)
    refusal(keys, bearer(key))
    keys.replace(store.records(), development=True)
    assert keys.authenticate(bearer(key)) is not None


def test_the_same_key_in_both_headers_is_one_key(keys: KeyRing, key: bytes) -> None:
    assert keys.authenticate([*bearer(key), (b"x-api-key", key), *bearer(key)]) is not None


@pytest.mark.parametrize(
    "other",
    [
        (b"x-api-key", b"sk-something-else"),
        (b"authorization", b"Bearer eyJhbGciOiJIUzI1NiJ9.e30.xxxx"),
        (b"authorization", b"Basic YWxpY2U6c2VjcmV0"),
    ],
)
def test_two_different_credentials_are_refused(keys: KeyRing, key: bytes, other: tuple[bytes, bytes]) -> None:
    for headers in ([*bearer(key), other], [other, *bearer(key)]):
        assert "Two different" in refusal(keys, headers)


def test_an_empty_header_beside_a_key_does_not_matter(keys: KeyRing, key: bytes) -> None:
    for headers in ([(b"x-api-key", b""), *bearer(key)], [*bearer(key), (b"x-api-key", b"")]):
        assert keys.authenticate(headers) is not None


def test_an_unknown_id_costs_the_same_comparison_as_a_wrong_secret(
    keys: KeyRing, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return compare_digest(left, right)

    monkeypatch.setattr(ring, "compare_digest", watched)
    refusal(keys, bearer(key[:-1] + (b"b" if key.endswith(b"a") else b"a")))
    refusal(keys, bearer(b"hr-000000000000-" + b"a" * 32))
    assert compared == [(32, 32)] * 4


def test_a_very_long_header_is_answered_at_once(keys: KeyRing, key: bytes) -> None:
    for token in (b"hr-" * 3_000_000, key * 200_000, b"x" * 10_000_000):
        started = time.process_time()
        try:
            assert keys.authenticate([(b"x-api-key", token)]) is None
        except Unauthenticated as error:
            assert len(error.message) < 200
        assert time.process_time() - started < 1


def test_bytes_beyond_ascii_are_no_key(keys: KeyRing, key: bytes) -> None:
    refusal(keys, bearer(key[:-1] + b"\xe9"))
    refusal(keys, bearer(key[:-2] + "é".encode()))
    assert keys.authenticate(bearer(b"\xff\xfe\x00")) is None
    assert keys.authenticate([(b"authorization", b"B\xe9arer " + b"x" * 40)]) is None


def test_neither_the_ring_nor_its_entries_show_what_they_hold(keys: KeyRing, store: Store, key: bytes) -> None:
    shown = repr(keys) + repr(vars(keys)) + repr(store.records())
    assert key.decode().split("-")[2] not in shown
    for record in store.records():
        assert repr(record.salt) not in shown and repr(record.digest) not in shown


ids = st.text(keyformat.ID_ALPHABET, min_size=12, max_size=12)
key_like = st.builds("hr-{}-{}".format, ids, st.text(keyformat.SECRET_ALPHABET, min_size=32, max_size=32))
tokens = st.one_of(st.binary(max_size=80), key_like.map(str.encode), st.text(max_size=60).map(str.encode))
values = st.one_of(tokens, tokens.map(lambda token: b"Bearer " + token), tokens.map(lambda token: b"hr-" + token))


@given(headers=st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4))
def test_arbitrary_headers_never_authenticate_and_never_fail_otherwise(
    keys: KeyRing, key: bytes, headers: Headers
) -> None:
    with contextlib.suppress(Unauthenticated):
        assert keys.authenticate(headers) is None


@given(position=st.integers(0, 47), byte=st.integers(0, 255))
def test_a_key_with_one_other_byte_never_authenticates(keys: KeyRing, key: bytes, position: int, byte: int) -> None:
    changed = key[:position] + bytes([byte]) + key[position + 1 :]
    if changed == key:
        return
    with contextlib.suppress(Unauthenticated):
        assert keys.authenticate([(b"x-api-key", changed)]) is None


def test_keys_have_the_documented_form_and_do_not_repeat(tmp_path: Path) -> None:
    made = {keyformat.whole_key(keyformat.new_id(), keyformat.new_secret()) for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"hr-[0-9a-z]{12}-[A-Za-z0-9]{32}", key) for key in made)
    assert len(keyformat.SECRET_ALPHABET) ** keyformat.SECRET_LENGTH > 2**160
