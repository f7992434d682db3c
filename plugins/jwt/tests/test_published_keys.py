"""Keys that an issuer publishes: followed over real sockets, through rotation, outages and nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from headrace.errors import Unavailable
from headrace.upstream import Upstream
from headrace_jwt import jwks
from headrace_jwt.fetch import SIZE_LIMIT, Fetched, Fetcher, FetchError
from headrace_jwt.jwks import PublishedKeys
from headrace_jwt.keyset import from_jwks

Make = Callable[..., Any]


@contextlib.asynccontextmanager
async def fetcher(config: Make, key_server: Any, **options: Any) -> AsyncIterator[Fetcher]:
    upstream = Upstream()
    try:
        yield Fetcher(config(**{"jwks_url": key_server.url, **options}), upstream)
    finally:
        await upstream.aclose()


@pytest.fixture
def following(config: Make, key_server: Any) -> Make:
    """The keys of the server, followed; gives them and the list of changes."""

    @contextlib.asynccontextmanager
    async def follow(**options: Any) -> AsyncIterator[tuple[PublishedKeys, list[str]]]:
        changes: list[str] = []
        made = config(jwks_url=key_server.url, **options)
        async with fetcher(config, key_server, **options) as fetching:
            keys = PublishedKeys(made, fetching.fetch, lambda: changes.append("changed"))
            async with keys.refreshed():
                yield keys, changes

    return follow


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    """How many log lines of the plugin hold these words."""
    caplog.set_level(logging.DEBUG)
    return lambda words: sum(words in record.getMessage() for record in caplog.records)


def rotate(key_server: Any, keys: Any) -> None:
    key_server.keys = [keys.jwk(keys.other_rsa, kid="two")]


async def test_keys_are_there_before_the_first_request(following: Make, key_server: Any) -> None:
    async with following() as (published, _):
        assert published.current().knows("one")
        assert key_server.asked == 1


async def test_a_rotated_key_is_found_in_the_background_and_the_old_one_is_gone(
    following: Make, key_server: Any, keys: Any, eventually: Make
) -> None:
    async with following(jwks_refresh=1.0) as (published, changes):
        rotate(key_server, keys)
        await eventually(lambda: published.current().knows("two"))
        assert not published.current().knows("one")
        assert len(changes) == 2


async def test_nothing_changes_while_the_issuer_publishes_the_same(
    following: Make, key_server: Any, eventually: Make
) -> None:
    async with following(jwks_refresh=1.0) as (_, changes):
        await eventually(lambda: key_server.asked >= 3)
        assert len(changes) == 1


async def test_an_unknown_key_is_asked_for_at_once(following: Make, key_server: Any, keys: Any) -> None:
    async with following() as (published, _):
        rotate(key_server, keys)
        assert (await published.with_key("two")).knows("two")


async def test_a_known_key_causes_no_fetch(following: Make, key_server: Any) -> None:
    async with following() as (published, _):
        for kid in ("one", None):
            await published.with_key(kid)
        assert key_server.asked == 1


async def test_many_requests_with_an_unknown_key_share_one_fetch(
    following: Make, key_server: Any, keys: Any, eventually: Make
) -> None:
    async with following() as (published, _):
        rotate(key_server, keys)
        key_server.answering.clear()
        waiting = [asyncio.create_task(published.with_key("two")) for _ in range(100)]
        await eventually(lambda: key_server.asked == 2)
        assert published.current().knows("one"), "the others go on with the keys that are there"
        key_server.answering.set()
        assert all(found.knows("two") for found in await asyncio.gather(*waiting))
        assert key_server.asked == 2


async def test_invented_key_names_cause_few_fetches(following: Make, key_server: Any) -> None:
    async with following() as (published, _):
        started = time.monotonic()
        for number in range(500):
            assert not (await published.with_key(f"invented-{number}")).knows(f"invented-{number}")
        periods = 1 + int((time.monotonic() - started) / jwks.ASK_AGAIN_SECONDS)
        assert 2 <= key_server.asked <= 1 + periods


async def test_a_client_that_leaves_does_not_end_the_fetch_for_others(
    following: Make, key_server: Any, keys: Any, eventually: Make
) -> None:
    async with following() as (published, _):
        rotate(key_server, keys)
        key_server.answering.clear()
        first = asyncio.create_task(published.with_key("two"))
        await eventually(lambda: key_server.asked == 2)
        second = asyncio.create_task(published.with_key("two"))
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        key_server.answering.set()
        assert (await second).knows("two")


async def test_an_outage_is_survived_on_the_keys_that_are_known_and_said_once(
    following: Make, key_server: Any, eventually: Make, said: Callable[[str], int]
) -> None:
    async with following(jwks_refresh=1.0) as (published, changes):
        key_server.status = 500
        await eventually(lambda: key_server.asked >= 4)
        assert published.current().knows("one")
        assert said("cannot be fetched: it answers 500") == 1
        key_server.status = 200
        await eventually(lambda: said("can be fetched again") == 1)
        assert len(changes) == 1


async def test_after_the_grace_there_are_no_keys_until_the_issuer_is_back(
    following: Make, key_server: Any, eventually: Make, said: Callable[[str], int]
) -> None:
    async with following(jwks_refresh=1.0, jwks_grace=1.0) as (published, _):
        await key_server.stop()
        await eventually(lambda: said("still cannot be fetched") == 1)
        with pytest.raises(Unavailable) as caught:
            await published.with_key("one")
        assert caught.value.status == 503 and int(caught.value.headers["Retry-After"]) > 0
        await key_server.start()
        await eventually(lambda: said("can be fetched again") == 1)
        assert published.current().knows("one")
        assert said("cannot be fetched: ") == 2, "once when it went down, once when the grace was over"


async def test_without_grace_one_failure_is_enough(following: Make, key_server: Any, eventually: Make) -> None:
    async with following(jwks_refresh=1.0, jwks_grace=0.0) as (published, _):
        key_server.status = 500
        await eventually(lambda: key_server.asked >= 3)
        with pytest.raises(Unavailable):
            published.current()


async def test_an_issuer_that_is_down_at_the_start_is_asked_again(
    following: Make, key_server: Any, eventually: Make, said: Callable[[str], int]
) -> None:
    await key_server.stop()
    async with following(jwks_refresh=1.0) as (published, _):
        assert said("answered 503 until they can") == 1
        with pytest.raises(Unavailable):
            published.current()
        await key_server.start()
        await eventually(lambda: published._last is not None)
        assert published.current().knows("one")


async def test_an_unknown_key_during_an_outage_is_not_called_wrong(following: Make, key_server: Any) -> None:
    async with following() as (published, _):
        key_server.status = 500
        with pytest.raises(Unavailable):
            await published.with_key("two")
        assert (await published.with_key("one")).knows("one")


async def test_a_fetch_that_failed_for_a_request_is_tried_again_soon(
    following: Make, key_server: Any, eventually: Make, said: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "RETRY_SECONDS", 0.1)
    async with following(jwks_refresh=3600.0) as (published, _):
        key_server.status = 500
        with pytest.raises(Unavailable):
            await published.with_key("two")
        key_server.status = 200
        await eventually(lambda: said("can be fetched again") == 1)


async def test_a_fetch_under_way_ends_with_the_gateway(following: Make, key_server: Any, eventually: Make) -> None:
    async with following(jwks_refresh=1.0, jwks_timeout=20.0):
        key_server.answering.clear()
        await eventually(lambda: key_server.asked == 2)
        started = time.monotonic()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": 302, "headers": {"Location": "/other"}}, "redirects are not followed"),
        ({"status": 404}, "it answers 404"),
        ({"status": 503}, "it answers 503"),
        ({"body": b"<html>Sign in</html>"}, "no JSON Web Key Set"),
        ({"body": b""}, "no JSON Web Key Set"),
        ({"body": b'{"keys":[]}'}, "none can be used"),
        ({"body": b" " * (SIZE_LIMIT + 1)}, "larger than"),
        ({"body": b" " * 40_000_000}, "larger than"),
        ({"headers": {"Content-Type": "text/event-stream"}}, "has no end"),
    ],
)
async def test_an_answer_that_is_no_key_set_is_an_error_that_says_why(
    config: Make, key_server: Any, change: dict[str, Any], reason: str
) -> None:
    for name, value in change.items():
        setattr(key_server, name, value)
    async with fetcher(config, key_server) as fetching:
        with pytest.raises(FetchError, match=reason):
            await fetching.fetch()
    assert key_server.asked == 1


async def test_an_issuer_that_says_nothing_is_given_up(config: Make, key_server: Any) -> None:
    key_server.answering.clear()
    async with fetcher(config, key_server, jwks_timeout=0.2) as fetching:
        with pytest.raises(FetchError, match=r"within 0\.2 s"):
            await fetching.fetch()


async def test_a_ca_bundle_that_is_not_there_is_an_error_that_says_so(config: Make, key_server: Any) -> None:
    async with fetcher(config, key_server, jwks_ca="/nowhere/ca.pem") as fetching:
        with pytest.raises(FetchError, match="No such file"):
            await fetching.fetch()


def private_certificate(key: Any, folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for the loopback address that vouches for itself, and a server's context with it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    day = datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    made = made.add_extension(address, critical=False).add_extension(x509.BasicConstraints(True, None), critical=True)
    file = folder / "issuer.pem"
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM) + plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


async def test_a_certificate_is_checked_against_the_bundle_that_is_named(
    config: Make, key_server: Any, keys: Any, tmp_path: Path
) -> None:
    bundle, key_server.tls = private_certificate(keys.p256, tmp_path)
    await key_server.stop()
    await key_server.start()
    async with fetcher(config, key_server, jwks_ca=str(bundle)) as fetching:
        assert (await fetching.fetch()).keys.knows("one")
    async with fetcher(config, key_server) as fetching:
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            await fetching.fetch()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("max-age=120", 120.0),
        ("public, Max-Age = 7", 7.0),
        ('max-age="9"', 9.0),
        ("s-maxage=5", None),
        ("no-cache", None),
        ("max-age=-1", None),
        ("max-age=x", None),
        ("max-age=" + "9" * 12, None),
    ],
)
async def test_the_issuer_says_how_long_its_keys_keep(
    config: Make, key_server: Any, header: str, seconds: float | None
) -> None:
    key_server.headers = {"Cache-Control": header}
    async with fetcher(config, key_server) as fetching:
        assert (await fetching.fetch()).max_age == seconds


@pytest.mark.parametrize(
    ("max_age", "usual", "interval"),
    [
        (None, 300.0, 300.0),
        (600.0, 300.0, 600.0),
        (0.0, 300.0, 60.0),
        (0.0, 10.0, 10.0),
        (86_400.0, 300.0, 3600.0),
        (86_400.0, 7200.0, 7200.0),
    ],
)
async def test_what_the_issuer_says_counts_within_bounds(
    config: Make, keys: Any, max_age: float | None, usual: float, interval: float
) -> None:
    body = json.dumps({"keys": [keys.jwk(keys.rsa)]}).encode()

    async def fetch() -> Fetched:
        return Fetched(from_jwks(body, ["RS256"]), body, max_age)

    published = PublishedKeys(config(jwks_url="https://i.example/", jwks_refresh=usual), fetch, lambda: None)
    await published.refresh()
    assert published.interval() == interval


async def test_pauses_grow_while_the_issuer_is_away(config: Make) -> None:
    async def fetch() -> Fetched:
        raise FetchError("away")

    published = PublishedKeys(config(jwks_url="https://i.example/"), fetch, lambda: None)
    pauses = []
    for _ in range(6):
        await published.refresh()
        pauses.append(published.interval())
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


async def test_what_stands_in_the_query_of_the_address_is_not_logged(
    config: Make, said: Callable[[str], int], key_server: Any
) -> None:
    key_server.status = 500
    address = key_server.url + "?token=hidden"
    async with fetcher(config, key_server, jwks_url=address) as fetching:
        published = PublishedKeys(config(jwks_url=address), fetching.fetch, lambda: None)
        await published.refresh()
    assert said(key_server.url) == 1 and said("hidden") == 0
