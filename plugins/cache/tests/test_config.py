"""What the configuration may say, and what is told of what it may not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.config import Secret
from headrace.errors import HeadraceError
from headrace.testing import serve
from headrace_cache import CacheConfig, Plugin, remote
from headrace_cache.config import address_of


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", "h:6379"),
        ("rediss://u:p@h:1/2", "h:1"),
        ("unix:///run/r.sock?db=3", "/run/r.sock"),
        ("memcached://h", "h:11211"),
    ],
)
def test_urls_name_a_server(url: str, place: str) -> None:
    assert str(address_of(Secret(url))) == place


@pytest.mark.parametrize(
    "url", ["http://h", "redis://", "redis://h/x", "redis://h:x", "memcached://u:secret@h", "redis://h?a=secret", "h"]
)
def test_a_url_that_is_none_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: ") as refused:
        address_of(Secret(url))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "given", [{"memory": False}, {"max_entry_bytes": 2**30}, {"ttl": 0}, {"ttl": 10**7}, {"ignore": ["metadata"]}]
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, CacheConfig)


async def test_a_model_that_there_is_not_stops_the_start(backend: Any) -> None:
    document = backend.config(plugins={"cache": {"models": {"tets": {}}}})
    with pytest.raises(HeadraceError, match=r"no model 'tets' \(there are: test\)"):
        async with serve(document, plugins={"cache": Plugin}):
            pass


async def test_a_missing_package_is_named_with_the_command_that_installs_it(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote.PACKAGES, "redis", "no_such_package")
    document = backend.config(plugins={"cache": {"url": "redis://127.0.0.1:1"}})
    with pytest.raises(HeadraceError, match=r"pip install 'headrace-cache\[redis\]'"):
        async with serve(document, plugins={"cache": Plugin}):
            pass
