"""Configuration files: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.config import Config, Count, Positive, Secret, Strict
from headrace.errors import ConfigError
from headrace.gateway import Gateway
from headrace.reports import config_report
from headrace.settings import decode_plugin, load, parse

BACKEND = '[backends.b]\nprovider = "openai"\n'
MODEL = '[models.m]\ntargets = ["b"]\n'
SOURCE = "gateway.toml"


def read(toml: str, **environ: str) -> Config:
    return parse(tomllib.loads(toml), source=SOURCE, environ=environ)


def problems(toml: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(toml, **environ)
    return [str(problem) for problem in caught.value.problems]


def problem(toml: str, **environ: str) -> str:
    (only,) = problems(toml, **environ)
    return only


# --- the file itself ---


def test_an_empty_file_is_a_configuration_of_defaults() -> None:
    config = read("")
    assert config.server.listen == "127.0.0.1:8080"
    assert config.models == {}


def test_a_file_is_read_with_its_values_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[server]\nlisten = { env = "LISTEN" }\n', "utf-8")
    assert load(path, {"LISTEN": "0.0.0.0:1"}).server.listen == "0.0.0.0:1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"[server\n", "is not valid TOML"),
        (b"[server]\nlisten = 1\nlisten = 2\n", "is not valid TOML"),
        (b'a = "\xff"\n', "is not valid TOML"),
    ],
    ids=["missing", "syntax", "key twice", "not UTF-8"],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "gateway.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_a_directory_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


# --- values from elsewhere ---


@pytest.mark.parametrize(
    ("reference", "environ", "value"),
    [
        ('{ env = "X" }', {"X": "set"}, "set"),
        ('{ env = "X", default = "given" }', {}, "given"),
        ('{ env = "X", default = "given" }', {"X": "set"}, "set"),
        ('{ env = "X", default = "given" }', {"X": ""}, ""),
    ],
)
def test_a_value_may_come_from_the_environment(reference: str, environ: dict[str, str], value: str) -> None:
    assert read(f"[server]\nstate_dir = {reference}", **environ).server.state_dir == value


@pytest.mark.parametrize(
    ("reference", "environ", "value"),
    [
        ('{ env = "X", split = "," }', {"X": "c, d ,,"}, ["c", "d"]),
        ('{ env = "X", default = "", split = "," }', {}, []),
        ('{ env = "X", default = "c;d", split = ";" }', {}, ["c", "d"]),
        ('{ env = "X", default = ["c"], split = "," }', {}, ["c"]),
        ('["c", { env = "X" }]', {"X": "d"}, ["c", "d"]),
    ],
)
def test_a_list_may_come_from_the_environment(reference: str, environ: dict[str, str], value: list[str]) -> None:
    assert read(f"{MODEL}aliases = {reference}\n{BACKEND}", **environ).models["m"].aliases == value


def test_a_value_may_come_from_a_file_whose_line_end_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n", "utf-8")
    config = read(f'{MODEL}{BACKEND}api_key = {{ file = "{tmp_path}/key" }}')
    assert config.backends["b"].api_key == Secret("sk-from-file")


def test_a_file_in_the_home_directory_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "listen").write_text("[::1]:80", "utf-8")
    assert read('[server]\nlisten = { file = "~/listen" }').server.listen == "[::1]:80"


def test_a_key_named_file_or_env_belongs_to_the_plugin_whose_table_it_stands_in() -> None:
    config = read('[plugins.logs]\nfile = "/nowhere/requests.log"\n[plugins.other]\nenv = "NOT_SET"')
    assert config.plugins == {"logs": {"file": "/nowhere/requests.log"}, "other": {"env": "NOT_SET"}}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_body_bytes", "123", 123),
        ("body_timeout", "2.5", 2.5),
        ("body_timeout", "3", 3.0),
        ("anonymous", "true", True),
        ("anonymous", "False", False),
        ("docs", "0", False),
    ],
)
def test_text_from_the_environment_becomes_the_number_or_switch_a_key_wants(key: str, text: str, value: object) -> None:
    found = getattr(read(f'[server]\n{key} = {{ env = "X" }}', X=text).server, key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text"),
    [("max_body_bytes", "many"), ("max_body_bytes", "1.5"), ("body_timeout", ""), ("body_timeout", "-1")],
)
def test_text_from_the_environment_that_does_not_fit_is_refused_under_its_key(key: str, text: str) -> None:
    assert problem(f'[server]\n{key} = {{ env = "X" }}', X=text).startswith(f"{SOURCE}: [server] {key}: Expected ")


@pytest.mark.parametrize(("text", "value"), [("false", False), ("true", True), ("/etc/ca.pem", "/etc/ca.pem")])
def test_a_switch_that_may_also_be_a_path_is_a_switch_when_the_environment_says_so(text: str, value: object) -> None:
    assert read(f'{MODEL}{BACKEND}verify = {{ env = "X" }}', X=text).backends["b"].verify == value


@pytest.mark.parametrize("key", ["headers = { A = %s }", "timeouts = { connect = %s }", "options = { a = { b = %s } }"])
def test_a_missing_variable_is_named_with_the_key_that_wanted_it(key: str) -> None:
    found = problem(MODEL + BACKEND + key % '{ env = "NOT_SET" }')
    assert found.startswith(f"{SOURCE}: [backends.b.")
    assert found.endswith("the environment variable NOT_SET is not set, and there is no default")


def test_a_missing_variable_is_found_wherever_it_stands() -> None:
    assert "NOT_SET" in problem(MODEL + BACKEND + 'options = { keys = [{ env = "NOT_SET" }] }')


@pytest.mark.parametrize(
    "reference",
    [
        '{ file = "/nowhere/key" }',
        '{ file = "/" }',
        '{ file = "~no-such-user-anywhere/key" }',
        '{ file = "a\\u0000b" }',
        '{ env = "X", default = "", split = "" }',
        '{ env = "X", default = "", split = 5 }',
    ],
)
def test_a_reference_that_cannot_be_followed_is_a_problem_of_its_key(reference: str) -> None:
    assert problem(f"[server]\nlisten = {reference}").startswith(f"{SOURCE}: [server] listen: ")


# --- backends that no model uses ---


UNUSED = [
    'provider = "openai"\napi_key = { env = "NOT_SET" }',
    'provider = "openai"\nheaders = { A = { env = "NOT_SET" } }',
    'provider = { env = "NOT_SET" }',
]


@pytest.mark.parametrize("models", ["", MODEL], ids=["no models", "a model of another backend"])
@pytest.mark.parametrize("table", UNUSED, ids=["key", "nested", "required"])
def test_a_backend_that_no_model_uses_may_miss_its_variables(models: str, table: str) -> None:
    read(f"{models}{BACKEND}[backends.unused]\n{table}")


def test_a_backend_that_no_model_uses_is_checked_all_the_same() -> None:
    assert "prvider" in problems(f"{MODEL}{BACKEND}[backends.unused]\nprovider = 'x'\nprvider = 'openai'")[0]


@pytest.mark.parametrize(("use", "needed"), [("true", True), ("TRUE", True), ("1", True), ("false", False)])
def test_a_fallback_needs_its_variables_only_when_it_is_used(use: str, needed: bool) -> None:
    toml = f"""{MODEL}fallback = ["spare"]\nuse_fallback = {{ env = "USE" }}\n{BACKEND}
        [backends.spare]\nprovider = "openai"\napi_key = {{ env = "NOT_SET" }}"""
    if needed:
        assert problem(toml, USE=use).startswith(f"{SOURCE}: [backends.spare] api_key: ")
    else:
        assert read(toml, USE=use).models["m"].use_fallback is False


# --- what is refused ---


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[sever]", "sever: is not a known key; did you mean 'server'?"),
        ("[server]\nlistne = 'x'", "[server] listne: is not a known key; did you mean 'listen'?"),
        ("[health]\nxyzzy = 1", "[health] xyzzy: is not a known key (known: interval, timeout)"),
        (f"{MODEL}{BACKEND}[backends.c]", "[backends.c] provider: is required"),
        ("[server]\nlisten = 80", "[server] listen: Expected `str`, got `int`"),
        ("[server]\nlisten = 1979-05-27", "[server] listen: Expected `str`, got `date`"),
        ("[server]\ndelivery = 'fast'", "[server] delivery: Invalid enum value 'fast' (one of: auto, inline, offload)"),
        ("[server]\nmax_body_bytes = 0", "[server] max_body_bytes: Expected `int` >= 1"),
        ("[server]\nmax_body_bytes = '5'", "[server] max_body_bytes: Expected `int`, got `str`"),
        ("[server]\nmax_body_bytes = true", "[server] max_body_bytes: Expected `int`, got `bool`"),
        ("[health]\ninterval = nan", "[health] interval: Expected `float` > 0.0"),
        ("server = 3", "server: Expected `object`, got `int`"),
        ("[[models]]", "models: Expected `object`, got `array`"),
        ("[models]\nm = 3", "[models] m: Expected `object`, got `int`"),
        ("[models.m]\ntargets = 'b'", "[models.m] targets: Expected `array`, got `str`"),
        ("[models.m]\ntargets = [{}]", "[models.m] targets[0].provider: is required"),
        ("[order]\nauthorize = 'x'", "[order] authorize: Expected `array`, got `str`"),
        ("plugins = 3", "plugins: must be a table of tables: write [plugins.NAME]"),
        ("[plugins]\nlogs = true", "[plugins] logs: must be a table: write [plugins.logs]"),
        ("[models.m]", "[models.m] targets: names no backend: a model needs at least one target"),
        (MODEL, "[models.m] targets: there is no [backends.b] (there are: none is defined)"),
        (f"{MODEL}fallback = ['c']\n{BACKEND}", "[models.m] targets: there is no [backends.c] (there are: b)"),
    ],
)
def test_a_mistake_is_reported_with_file_table_and_key(toml: str, expected: str) -> None:
    assert problem(toml) == f"{SOURCE}: {expected}"


def test_a_fallback_that_is_switched_off_may_name_what_does_not_exist() -> None:
    assert read(f"{MODEL}fallback = ['c']\nuse_fallback = false\n{BACKEND}").models["m"].fallback == ["c"]


@pytest.mark.parametrize(
    ("aliases_of_m", "aliases_of_n", "taken"),
    [([], ["m"], "m"), (["n"], [], "n"), (["x"], ["x"], "x"), (["x", "x"], [], "x")],
    ids=["a model's name", "a later model's name", "an alias", "an alias twice"],
)
def test_a_name_that_two_models_claim_is_refused(aliases_of_m: list[str], aliases_of_n: list[str], taken: str) -> None:
    models = f'{MODEL}aliases = {aliases_of_m}\n[models.n]\ntargets = ["b"]\naliases = {aliases_of_n}\n'
    assert problem(models + BACKEND).endswith(f"the name {taken!r} is taken by [models.m]")


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        """
        [server]
        listen = 1
        listne = "x"
        [backends.b]
        base_url = { env = "NOT_SET" }
        [models.m]
        targets = ["b", { provider = "x", wieght = 1 }]
        [health]
        timeout = -1
        """
    )
    assert sorted(each.removeprefix(f"{SOURCE}: ").partition(": ")[0] for each in found) == [
        "[backends.b] base_url",
        "[backends.b] provider",
        "[health] timeout",
        "[models.m] targets[1].wieght",
        "[server] listen",
        "[server] listne",
    ]


def test_an_unknown_backend_is_reported_beside_other_problems() -> None:
    found = problems("[server]\nlistne = 'x'\n[models.m]\ntargets = ['nowhere']")
    assert any("[backends.nowhere]" in each for each in found), found


def test_problems_stand_in_the_order_of_the_file() -> None:
    keys = [f"unknown_{letter}" for letter in "hgfedcba"]
    found = problems("".join(f"{key} = 1\n" for key in keys))
    assert [each.split(": ")[1] for each in found] == keys


# --- plugins' tables ---


class Limits(Strict, frozen=True):
    rate: Count
    token: Secret | None = None
    names: list[str] | None = None
    share: Positive = 1.0

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("share must not exceed 1")


def test_a_plugins_table_is_checked_against_its_own_struct() -> None:
    table = read('[plugins.limits]\nenabled = true\nrate = { env = "RATE" }\ntoken = "t"', RATE="7").plugins["limits"]
    assert decode_plugin("limits", table, Limits, SOURCE) == Limits(rate=7, token=Secret("t"))


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("", ["[plugins.limits] rate: is required"]),
        ("rate = 1\nraet = 1", ["[plugins.limits] raet: is not a known key; did you mean 'rate'?"]),
        (
            "rate = 0\ntoken = 5",
            ["[plugins.limits] rate: Expected `int` >= 1", "[plugins.limits] token: Expected `str`"],
        ),
        ("rate = 1\nshare = 2.0", ["share must not exceed 1"]),
        ("rate = { env = 'NOT_SET' }", ["[plugins.limits] rate: the environment variable NOT_SET is not set"]),
        ("rate = 1\nnames = [{ env = 'NOT_SET' }]", ["the environment variable NOT_SET is not set"]),
    ],
)
def test_a_plugins_table_is_refused_in_the_same_words(toml: str, expected: list[str]) -> None:
    table = read(f"[plugins.limits]\n{toml}").plugins["limits"]
    with pytest.raises(ConfigError) as caught:
        decode_plugin("limits", table, Limits, SOURCE)
    assert len(caught.value.problems) == len(expected)
    for found, words in zip(caught.value.problems, expected, strict=True):
        assert str(found).startswith(f"{SOURCE}: ")
        assert words in str(found)


# --- secrets ---


@pytest.mark.parametrize("show", [str, repr, "{}".format, "{!r}".format, "%s".__mod__, lambda secret: f"{[secret]}"])
def test_a_secret_never_shows_itself(show: Any) -> None:
    assert "hunter2" not in show(Secret("hunter2"))


def test_a_secret_can_be_revealed_compared_and_tested_for_emptiness() -> None:
    assert Secret("hunter2").reveal() == "hunter2"
    assert Secret("hunter2") == Secret("hunter2") != Secret("other")
    assert bool(Secret("x")) and not bool(Secret(""))
    assert len({Secret("x"), Secret("x")}) == 1


def test_a_secret_cannot_be_encoded_by_accident() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret("hunter2"))


def test_a_secret_stays_out_of_the_configuration_that_is_shown() -> None:
    config = read(f"{MODEL}{BACKEND}api_key = {{ env = 'KEY' }}\n[plugins.openai]", KEY="hunter2")
    shown = msgspec.json.encode(config_report(Gateway(config)))
    assert b"hunter2" not in shown
    assert b'"api_key":"***"' in shown
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("key", ["weight", "verify", "timeouts", "api_key"])
def test_a_value_that_is_refused_is_not_repeated_in_the_problem(key: str) -> None:
    wrong = f"{MODEL}{BACKEND}{key} = {{ env = 'KEY', split = ';' }}"
    assert "hunter2" not in problem(wrong, KEY="hunter2")
