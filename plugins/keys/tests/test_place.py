"""The option `database`: a file or a server's URL, whose password nobody sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli import main
from headrace.errors import ConfigError, PluginError
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_keys.place import PostgresPlace, postgres_place
from headrace_keys.store import Store

PASSWORD = "s3cr3t/wörd"
URL = "postgresql://keys:s3cr3t%2Fw%C3%B6rd@db.example.org:6432/headrace"


def gateway(**keys: Any) -> Gateway:
    return Gateway(parse({"plugins": {"keys": keys}}))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        (URL, ("db.example.org", 6432, "keys", PASSWORD, "headrace", "prefer")),
        ("postgres://u@h/d", ("h", 5432, "u", "", "d", "prefer")),
        ("postgresql://u@[::1]:1/d", ("::1", 1, "u", "", "d", "prefer")),
        ("postgresql://u@/d?host=/run/postgresql", ("/run/postgresql", 5432, "u", "", "d", "prefer")),
        ("postgresql://u@h/d?sslmode=verify-full&port=7", ("h", 7, "u", "", "d", "verify-full")),
        ("postgresql:///?user=u&dbname=d&password=p", ("localhost", 5432, "u", "p", "d", "prefer")),
    ],
)
def test_a_url_is_taken_apart(url: str, parts: tuple[Any, ...]) -> None:
    place = postgres_place(url)
    found = (place.host, place.port, place.user, place.password.reveal(), place.database, place.tls)
    assert found == parts


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://h/{PASSWORD}", "names no user"),
        (f"postgresql://u:{PASSWORD}@h", "cannot be read"),
        ("postgresql://u:s3cr3t@h", "names no database"),
        ("postgresql://u:s3cr3t@h:s3cr3t/d", "cannot be read"),
        ("postgresql://u:s3cr3t#more@h/d", "%23"),
        ("postgresql://u:s3cr3t@h:70000/d", "cannot be read"),
        ("postgresql://u:s3cr3t@h/d?sslmode=s3cr3t", "sslmode is one of"),
        ("postgresql://u:s3cr3t@h/d?s3cr3t=1", "may stand"),
        ("postgresql://u:s3cr3t%00@h/d", "NUL"),
        ("postgresql:/u:s3cr3t@h/d", "neither a file nor"),
        ("mysql://u:s3cr3t@h/d", "neither a file nor"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_problem_that_shows_no_part_of_it(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gateway(database=url)
    assert said in str(caught.value) and "[plugins.keys]" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("database", ["", "  ", "a\0b"])
def test_no_path_is_a_problem(database: str) -> None:
    with pytest.raises(ConfigError, match="database: is empty"):
        gateway(database=database)


def test_a_development_key_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="development_key: is for a database in a file"):
        gateway(database=URL, development_key=True)


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_URL", URL)
    place = gateway(database={"env": "KEYS_URL"}).plugins["keys"].database
    assert isinstance(place, PostgresPlace) and place.password.reveal() == PASSWORD


def test_neither_place_nor_plugin_nor_config_show_prints_the_password(tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text(f'[plugins.keys]\ndatabase = "{URL}"\n')
    plugin = gateway(database=URL).plugins["keys"]
    shown = CliRunner().invoke(main, ["--config", str(config), "config", "show"]).output
    assert json.loads(shown)["plugins"]["keys"]["database"] == "***"
    for text in (shown, str(plugin.database), repr(plugin.database), repr(plugin.config), repr(vars(plugin))):
        assert "s3cr3t" not in text
    assert str(plugin.database) == "the PostgreSQL database 'headrace' at db.example.org:6432"


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    monkeypatch.setitem(sys.modules, "pg8000.native", None)
    with pytest.raises(PluginError, match=r"pip install 'headrace-keys\[postgresql\]'"):
        Store.open(postgres_place(URL))


def test_where_keys_are_in_a_file_the_driver_is_not_even_imported(database: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from headrace_keys.store import Store
Store.open(Path({str(database)!r})).close()
assert not any(name.startswith("pg8000") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
