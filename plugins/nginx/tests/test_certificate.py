"""The development certificate."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace_nginx.certificate import ensure

DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_it_verifies_against_its_authority(front: Any, name: str) -> None:
    context = ssl.create_default_context(cafile=front.ca)
    with socket.create_connection(("127.0.0.1", front.port)) as plain, context.wrap_socket(plain, server_hostname=name):
        pass


def test_it_does_not_verify_for_another_name(front: Any) -> None:
    context = ssl.create_default_context(cafile=front.ca)
    with socket.create_connection(("127.0.0.1", front.port)) as plain, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(plain, server_hostname="example.com")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_kept_while_it_is_good(tmp_path: Path) -> None:
    ensure(tmp_path, ["localhost"])
    before = files(tmp_path)
    ensure(tmp_path, ["localhost"])
    assert files(tmp_path) == before
    assert set(before) == {".lock", "ca.key", "ca.pem", "server.pem"}


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    ensure(tmp_path / "tls", [])
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE((tmp_path / "tls" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_it_is_renewed_before_its_end_by_the_same_authority(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ensure(tmp_path, [], now)
    before = files(tmp_path)
    ensure(tmp_path, [], now + 330 * DAY)
    assert files(tmp_path) == before
    ensure(tmp_path, [], now + 340 * DAY)
    after = files(tmp_path)
    assert after["server.pem"] != before["server.pem"]
    assert after["ca.pem"] == before["ca.pem"]


def test_the_authority_is_replaced_before_it_could_sign_something_that_outlives_it(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ensure(tmp_path, [], now)
    before = files(tmp_path)
    ensure(tmp_path, [], now + 3300 * DAY)
    assert files(tmp_path)["ca.pem"] != before["ca.pem"]


def test_it_is_made_anew_when_the_names_change(tmp_path: Path) -> None:
    ensure(tmp_path, ["localhost"])
    before = files(tmp_path)
    ensure(tmp_path, ["localhost", "gateway.test", "*.gateway.test", "10.0.0.7"])
    after = files(tmp_path)
    assert after["server.pem"] != before["server.pem"]
    assert after["ca.pem"] == before["ca.pem"]


@pytest.mark.parametrize("damaged", ["ca.key", "ca.pem", "server.pem"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff\x00"])
def test_a_damaged_file_is_replaced(tmp_path: Path, damaged: str, content: bytes) -> None:
    ensure(tmp_path, [])
    (tmp_path / damaged).write_bytes(content)
    ensure(tmp_path, [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    context.load_verify_locations(tmp_path / "ca.pem")


def test_many_at_once_make_one(tmp_path: Path) -> None:
    found: list[bytes] = []

    def make() -> None:
        ensure(tmp_path, [])
        found.append((tmp_path / "ca.pem").read_bytes() + (tmp_path / "server.pem").read_bytes())

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len(set(found)) == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeadraceError, match=r"cannot be kept in .*file"):
        ensure(tmp_path / "file", [])
