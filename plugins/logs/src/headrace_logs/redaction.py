"""Replacing secrets and personal data in text that came from outside.

Every pattern is bounded, so that the time is linear in the text's length whatever the text is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

REDACTED = "[redacted]"

MARGIN = 4096
"""Characters read beyond a cut, so that a secret across it is recognised before it is cut."""

Rule = tuple[tuple[str, ...], Callable[[str], str]]
"""What is replaced, behind a cheap test: a lower-case text without any of these pieces cannot contain it."""

_SCHEME = r"(?:(?:bearer|basic|digest|token|apikey)\s{1,8})?"
_PLACEHOLDER = r"(?:KEY\b|YOUR|TOKEN\b|<|\{|\$|\[redacted\])"

_HEADER_VALUE = re.compile(
    r"((?:authorization|(?:x-)?api[-_ ]?key|(?:access|refresh|auth|id)[-_]token|client[-_]secret|passw(?:or)?d)"
    r"[\"']?\s{0,8}[:=]\s{0,8}[\"']?)"
    rf"(?!{_SCHEME}(?-i:{_PLACEHOLDER})){_SCHEME}[^\s\"',;}}]{{1,4096}}",
    re.IGNORECASE,
)
_BEARER = re.compile(
    r"\b(bearer\s{1,8})(?:(?=[a-z._~+/=-]{0,64}\d)[a-z\d._~+/=-]{8,4096}|[a-z\d._~+/=-]{20,4096})", re.IGNORECASE
)
_KEY = re.compile(
    r"(?<![A-Za-z\d])(?:(?:sk|hr)-(?=[a-z_-]{0,64}[A-Z\d])[A-Za-z\d_-]{16,}|hf_[A-Za-z\d]{20,})", re.ASCII
)
_JWT = re.compile(r"(?<![\w.-])eyJ[\w-]{5,}(?:\.[\w-]*){1,4}", re.ASCII)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]{1,512}@")
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])(?:4|5[1-5]|2[2-7]|3[0-9]|6[0-9])\d?(?:[ -]?\d){11,17}(?![\w-]|\.\d)", re.ASCII)
_DIGITS = re.compile(r"\d(?:[ -]?\d){12}", re.ASCII)

_SENSITIVE_NAME = re.compile(
    r"(?:proxy-)?authorization|(?:x-)?api[-_]?key|(?:access|refresh|auth|id)[-_]token|client[-_]secret|secret"
    r"|passw(?:or)?d",
    re.IGNORECASE,
)


def _is_card(digits: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1, annex B) and the lengths that cards have."""
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(value - 9 if value > 9 else value for value in doubled)
    return total % 10 == 0


def _card(match: re.Match[str]) -> str:
    digits = match[0].replace(" ", "").replace("-", "")
    return REDACTED if _is_card(digits) else match[0]


def _replaces(pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    return lambda text: pattern.sub(replacement, text)


def _without_cards(text: str) -> str:
    return _CARD.sub(_card, text) if len(text) > 12 and _DIGITS.search(text) else text


_SECRETS: tuple[Rule, ...] = (
    (("://",), _replaces(_URL_CREDENTIALS, REDACTED + "@")),
    (("authorization", "api", "token", "client", "passw"), _replaces(_HEADER_VALUE, rf"\1{REDACTED}")),
    (("bearer",), _replaces(_BEARER, rf"\1{REDACTED}")),
    (("sk-", "hr-", "hf_"), _replaces(_KEY, REDACTED)),
    (("eyj",), _replaces(_JWT, REDACTED)),
)
_PERSONAL: tuple[Rule, ...] = (
    (("@",), _replaces(_EMAIL, REDACTED)),
    (("",), _without_cards),
)


KNOWN = 1024
"""Names whose redaction is remembered."""


class Redactor:
    """Replaces what must not be logged by `[redacted]`.

    Args:
        extra: more regular expressions; checked by the configuration.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        own = tuple((("",), _replaces(re.compile(pattern), lambda _match: REDACTED)) for pattern in extra)
        self._rules: tuple[Rule, ...] = (*_SECRETS, *_PERSONAL, *own)
        self._no_extra = not own
        self.known = functools.lru_cache(maxsize=KNOWN)(self.text)
        """`text`, for what comes again and again: the names of models."""
        self.known_secrets = functools.lru_cache(maxsize=KNOWN)(self.secrets)
        """`secrets`, for the names of callers."""

    def secrets(self, text: str) -> str:
        """Credentials only: for names that the operator gave, which may be e-mail addresses."""
        return _apply(_SECRETS, text)

    def text(self, text: str) -> str:
        """Credentials, e-mail addresses, card numbers and the configured patterns."""
        if self._no_extra and text.isalnum() and text.isascii() and not text.isdecimal():
            return text  # a plain word, and so most request ids: none of our patterns is one
        return _apply(self._rules, text)

    def prefix(self, text: str, limit: int) -> str:
        """The first `limit` characters of a text, redacted so that a secret across the cut does not show."""
        if len(text) <= limit:
            return self.text(text)
        read = text[: limit + MARGIN]
        redacted = self.text(read)
        kept = redacted if len(read) == len(text) else redacted[:-MARGIN]
        return kept[:limit] + "…"

    def tree(self, value: Any, limit: int) -> Any:
        """Decoded JSON with every text in it redacted and cut to `limit` characters."""
        if isinstance(value, str):
            return self.prefix(value, limit)
        if isinstance(value, dict):
            return {self.prefix(name, limit): self._item(name, item, limit) for name, item in value.items()}
        if isinstance(value, list):
            return [self.tree(item, limit) for item in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return value if self.text(str(value)) == str(value) else REDACTED
        return value

    def _item(self, name: str, item: Any, limit: int) -> Any:
        if item and not isinstance(item, bool | dict) and _SENSITIVE_NAME.fullmatch(name):
            return REDACTED  # an object under such a name is a schema, or is looked into
        return self.tree(item, limit)


def _apply(rules: Sequence[Rule], text: str) -> str:
    lower = text.lower()
    for pieces, replace in rules:
        for piece in pieces:
            if piece in lower:
                text = replace(text)
                break
    return text
