"""The page, put together from its parts, and the policy that lets it do what it does and nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

import msgspec

STYLES = ("page.css",)
SCRIPTS = ("stream.js", "answer.js", "page.js")
"""In this order they make one script."""


class Page(msgspec.Struct, frozen=True):
    """What is sent: the whole document and its headers."""

    content: bytes
    headers: dict[str, str]


def assemble() -> Page:
    """Read the parts from the package and put them together."""
    style, script = _joined(STYLES), _joined(SCRIPTS)
    document = _read("page.html").replace("/* style */", style).replace("/* script */", script)
    return Page(document.encode("utf-8"), _headers(style, script))


def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(_read(name) for name in names)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _headers(style: str, script: str) -> dict[str, str]:
    policy = (
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _digest(text: str) -> str:
    """A hash source of CSP (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
