"""Replacing secrets and personal data in text that came from outside."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

from .config import USUAL, Personal
from .patterns import PERSONAL, REDACTED, SECRETS, Rule, apply, replaces

MARGIN = 4096
"""Characters read beyond a cut, so that a secret across it is recognised before it is cut."""

KNOWN = 1024
"""Names whose redaction is remembered."""

PLAIN_WORD = 32
"""Characters: none of our patterns matches a word so short, unless it begins with a capital or is a number."""

_UUID = re.compile(r"[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}", re.ASCII)

_SENSITIVE_NAME = re.compile(
    r"(?:proxy-)?authorization|(?:x-)?api[-_]?key|(?:access|refresh|auth|id)[-_]token|client[-_]secret|secret"
    r"|passw(?:or)?d",
    re.IGNORECASE,
)


class Redactor:
    """Replaces what must not be logged by `[redacted]`.

    Args:
        extra: more regular expressions, of which `own.compiled` thinks well.
        personal: what to replace beside secrets.
    """

    def __init__(self, extra: Sequence[str] = (), personal: Collection[Personal] = USUAL) -> None:
        own = tuple((("",), replaces(re.compile(pattern), lambda _match: REDACTED)) for pattern in extra)
        chosen = (rule for name, rules in PERSONAL.items() if name in personal for rule in rules)
        self._rules: tuple[Rule, ...] = (*SECRETS, *chosen, *own)
        self._no_extra = not own
        self.hides_addresses = "addresses" in personal
        """Whether nobody's address may be seen."""
        self.known = functools.lru_cache(maxsize=KNOWN)(self.text)
        """`text`, for what comes again and again: the names of models."""
        self.known_secrets = functools.lru_cache(maxsize=KNOWN)(self.secrets)
        """`secrets`, for the names of callers."""

    def secrets(self, text: str) -> str:
        """Credentials only: for names that the operator gave, which may be e-mail addresses."""
        return apply(SECRETS, text)

    def text(self, text: str) -> str:
        """Credentials, personal data and the configured patterns."""
        if self._no_extra:  # most request ids are nothing that our patterns match
            if len(text) <= PLAIN_WORD:
                if text.isalnum() and not "A" <= text < "[" and not text.isdecimal():
                    return text
            elif len(text) == 36 and _UUID.fullmatch(text):
                return text
        return apply(self._rules, text)

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


__all__ = ["MARGIN", "REDACTED", "Redactor"]
