"""The development key: always there, one for all processes, never where it is switched off."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.errors import PluginError, Unauthenticated
from headrace.gateway import Gateway
from headrace_keys import Plugin
from headrace_keys.store import Store

Make = Callable[..., Gateway]

ANNOUNCE = """
import sys
from headrace.gateway import Gateway
from headrace.settings import parse
document = {"server": {"state_dir": sys.argv[1]}, "plugins": {"keys": {"development_key": True}}}
gateway = Gateway(parse(document)).assemble()
print(gateway.hooks.announce(gateway)["key"])
"""


def announced(gateway: Gateway) -> str:
    return gateway.hooks.announce(gateway)["key"]


def who(gateway: Gateway, key: str) -> str | None:
    plugin: Plugin = gateway.plugins["keys"]
    principal = plugin.ring.authenticate([(b"x-api-key", key.encode())])
    return f"{principal.name}, {principal.role}" if principal else None


async def test_the_announced_key_works_and_stays_the_same(make_gateway: Make) -> None:
    key = announced(make_gateway(development_key=True))
    gateway = make_gateway(development_key=True)
    async with gateway.running():
        assert announced(gateway) == key
        assert who(gateway, key) == "development, admin"


async def test_a_gateway_that_is_not_announced_has_the_key_too(make_gateway: Make, tmp_path: Path) -> None:
    gateway = make_gateway(development_key=True)
    async with gateway.running():
        assert who(gateway, (tmp_path / "development.key").read_text().strip()) == "development, admin"


def test_the_file_is_for_its_owner_only_and_holds_the_key(make_gateway: Make, tmp_path: Path) -> None:
    key = announced(make_gateway(development_key=True))
    file = tmp_path / "development.key"
    assert file.read_text() == key + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    file.chmod(0o644)
    assert announced(make_gateway(development_key=True)) == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_the_setting_there_is_no_key(make_gateway: Make, tmp_path: Path) -> None:
    gateway = make_gateway()
    assert gateway.hooks.announce(gateway) == {}
    assert not (tmp_path / "development.key").exists()


async def test_a_key_of_earlier_days_is_refused_once_the_setting_is_off(make_gateway: Make) -> None:
    key = announced(make_gateway(development_key=True))
    gateway = make_gateway()
    async with gateway.running():
        with pytest.raises(Unauthenticated):
            who(gateway, key)


@pytest.mark.parametrize("content", [None, "", "hr-000000000000-" + "a" * 32, "not a key at all", "\xff" * 500])
def test_a_file_that_is_gone_or_holds_no_valid_key_gets_a_new_one(
    make_gateway: Make, tmp_path: Path, database: Path, content: str | None
) -> None:
    old = announced(make_gateway(development_key=True))
    file = tmp_path / "development.key"
    file.unlink()
    if content is not None:
        file.write_text(content)
    new = announced(make_gateway(development_key=True))
    assert new != old and file.read_text().strip() == new
    with Store.open(database) as store:
        states = {record.id: record.state(0, development=True) for record in store.records()}
    assert states == {old.split("-")[1]: "revoked", new.split("-")[1]: "active"}


def test_a_revoked_key_is_replaced_by_a_new_one(make_gateway: Make, database: Path) -> None:
    old = announced(make_gateway(development_key=True))
    with Store.open(database) as store, store.writing():
        store.revoke(old.split("-")[1])
    new = announced(make_gateway(development_key=True))
    assert new != old and announced(make_gateway(development_key=True)) == new


def test_a_key_that_a_person_named_development_is_left_alone(make_gateway: Make, database: Path) -> None:
    with Store.open(database) as store, store.writing():
        own, _ = store.create("development")
    announced(make_gateway(development_key=True))
    with Store.open(database) as store:
        assert next(record for record in store.records() if record.id == own.id).revoked is None


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    def announce(_: int) -> str:
        argv = [sys.executable, "-c", ANNOUNCE, str(tmp_path)]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(announce, range(4)))) == 1


async def test_the_key_is_in_no_log_line(make_gateway: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        gateway = make_gateway(development_key=True)
        key = announced(gateway)
        async with gateway.running():
            pass
    assert key.split("-")[2] not in caplog.text


def test_a_place_that_cannot_be_written_is_a_clear_error(make_gateway: Make, tmp_path: Path) -> None:
    (tmp_path / "development.key").mkdir()
    gateway = make_gateway(development_key=True)
    with pytest.raises(PluginError, match=r"development\.key is not a file"):
        gateway.hooks.announce(gateway)
