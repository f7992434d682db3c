"""The page as it is served: whole, closed to everything else, and not in need of any build."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from headrace_playground.page import assemble

if TYPE_CHECKING:
    from plugins.playground.tests.conftest import Site


@pytest.fixture(scope="module")
def reply(site: Site) -> httpx.Response:
    return httpx.get(site.url + "/playground", timeout=30)


def test_the_page_is_served_without_a_key(locked_site: Site) -> None:
    reply = httpx.get(locked_site.url + "/playground", timeout=30)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"


def test_the_page_answers_only_get(site: Site) -> None:
    reply = httpx.post(site.url + "/playground", timeout=30)
    assert reply.status_code == 405
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_the_headers_close_the_page_to_everything_else(reply: httpx.Response) -> None:
    policy = reply.headers["content-security-policy"].split("; ")
    for rule in (
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ):
        assert rule in policy
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("element", ["script", "style"])
def test_the_policy_allows_exactly_the_parts_of_the_page(reply: httpx.Response, element: str) -> None:
    parts = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", reply.text, re.DOTALL)
    assert len(parts) == 1
    digest = base64.b64encode(hashlib.sha256(parts[0].encode()).digest()).decode()
    assert f"{element}-src 'sha256-{digest}';" in reply.headers["content-security-policy"]


def test_the_page_needs_nothing_from_elsewhere(reply: httpx.Response) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", reply.text)
    assert "@import" not in reply.text
    assert set(re.findall(r"https?://[^\s'\")]+", reply.text)) <= {
        "http://www.w3.org/2000/svg",
        "https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream",
    }


def test_no_code_turns_text_into_html(reply: httpx.Response) -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", reply.text)
    assert not re.findall(r"\son\w+=", reply.text)
    assert not re.findall(r"\sstyle=", reply.text)


def test_the_page_is_small() -> None:
    assert len(assemble().content) < 48_000
