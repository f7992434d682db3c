"""What holds for any configuration whatever: it is read or refused, and text from the environment is not changed."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.settings import parse

SOURCE = "gateway.toml"


def read(toml: str, **environ: str) -> Config:
    return parse(tomllib.loads(toml), source=SOURCE, environ=environ)


WORDS = st.sampled_from(["", "b", "m", "openai", "NOT_SET", "SET", ",", "~x", "\0", "/", "true", "1"])
LEAVES = st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.floats(), WORDS, st.dates())
REFERENCES = st.fixed_dictionaries(
    {"env": WORDS}, optional={"default": LEAVES, "split": LEAVES}
) | st.fixed_dictionaries({"file": LEAVES})
VALUES = st.recursive(
    LEAVES | REFERENCES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2)
)


def tables(*keys: str) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(keys), VALUES, max_size=4) | VALUES


DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "server": tables("listen", "anonymous", "max_body_bytes", "body_timeout", "x"),
        "backends": st.dictionaries(WORDS, tables("provider", "api_key", "headers", "options", "verify", "timeouts")),
        "models": st.dictionaries(WORDS, tables("targets", "fallback", "use_fallback", "aliases")),
        "order": tables("authorize", "x"),
        "plugins": st.dictionaries(WORDS, tables("enabled", "env", "file", "x")),
        "x": VALUES,
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS)
def test_any_document_is_either_read_or_refused_with_problems(document: dict[str, Any]) -> None:
    try:
        config = parse(document, source=SOURCE, environ={"SET": "1"})
    except ConfigError as error:
        assert error.problems
        assert all(each.where.startswith(SOURCE) and each.message for each in error.problems)
    else:
        assert "_Missing" not in repr(config)


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_from_the_environment_reaches_a_key_that_wants_text_unchanged(text: str) -> None:
    assert read('[server]\nstate_dir = { env = "X" }', X=text).server.state_dir == text


@settings(deadline=None)
@given(st.floats(min_value=0, exclude_min=True, max_value=1e6))
def test_a_number_means_the_same_in_the_file_and_in_the_environment(number: float) -> None:
    written = read(f"[health]\ninterval = {number!r}").health.interval
    assert read('[health]\ninterval = { env = "X" }', X=repr(number)).health.interval == written
