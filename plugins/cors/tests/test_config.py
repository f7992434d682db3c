"""What the plugin accepts as configuration, and how it says no."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.gateway import Gateway
from headrace.settings import parse


def gateway(environ: dict[str, str] | None = None, **cors: Any) -> Gateway:
    return Gateway(parse({"plugins": {"cors": cors}}, environ=environ or {})).assemble()


def refusal(**cors: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        gateway(**cors)
    return str(caught.value)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://app.example.com",
        "http://localhost:3000",
        "http://[::1]:8080",
        "https://xn--bcher-kva.example",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnop",
    ],
)
def test_origins_as_browsers_send_them_are_accepted(origin: str) -> None:
    gateway(origins=[origin])


@pytest.mark.parametrize(
    ("origin", "correction"),
    [
        ("https://example.com/", "https://example.com"),
        ("https://example.com/app?x=1#y", "https://example.com"),
        ("HTTPS://Example.COM", "https://example.com"),
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://user:word@example.com", "https://example.com"),
        (" https://example.com", "https://example.com"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_what_browsers_never_send_is_refused_with_the_correction(origin: str, correction: str) -> None:
    assert f"write {correction!r}" in refusal(origins=[origin])


@pytest.mark.parametrize(
    "origin", ["example.com", "localhost:3000", "", "null", "https://", "https://[::1", "//x", "a b"]
)
def test_what_is_no_origin_is_refused_with_an_example(origin: str) -> None:
    assert "is not an origin" in refusal(origins=[origin])


@pytest.mark.parametrize(
    "origin", ["https://example.com:port", "https://example.com:99999", "https://a..b", "https://a b"]
)
def test_an_impossible_host_or_port_is_a_clear_error(origin: str) -> None:
    assert "is not an origin" in refusal(origins=[origin])


def test_a_wildcard_within_an_origin_is_pointed_to_origin_regex() -> None:
    assert "use origin_regex" in refusal(origins=["https://*.example.com"])


def test_a_broken_regular_expression_is_refused() -> None:
    assert "not a regular expression" in refusal(origin_regex="https://[a-z")


@pytest.mark.parametrize("open_to_all", [{"origins": ["*"]}, {"origin_regex": ".*"}, {"origin_regex": "https?://.+"}])
def test_credentials_for_every_page_are_refused(open_to_all: dict[str, Any]) -> None:
    assert "every web page could act" in refusal(credentials=True, **open_to_all)


def test_credentials_need_the_exposed_headers_by_name() -> None:
    assert "expose_headers by name" in refusal(origins=["https://a.example"], credentials=True, expose_headers=["*"])


def test_a_method_in_small_letters_is_refused_with_the_correction() -> None:
    assert "write 'POST'" in refusal(origins=["*"], methods=["post"])


@pytest.mark.parametrize("broken", [{"headers": ["X Y"]}, {"headers": ["X:\r\nY"]}, {"expose_headers": [""]}])
def test_what_is_no_header_name_is_refused(broken: dict[str, Any]) -> None:
    assert f"{next(iter(broken))}: " in refusal(origins=["*"], **broken)


def test_a_negative_age_is_refused() -> None:
    assert "max_age" in refusal(max_age=-1)


def test_origins_may_come_from_the_environment() -> None:
    made = gateway({"PAGES": "https://a.example, https://b.example"}, origins={"env": "PAGES", "split": ","})
    assert made.plugins["cors"].config.origins == ["https://a.example", "https://b.example"]


def test_without_origins_the_application_is_not_wrapped() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    assert gateway().hooks.asgi_wrapper(app) is app
    assert gateway(origins=["*"]).hooks.asgi_wrapper(app) is not app
