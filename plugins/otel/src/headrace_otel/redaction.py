"""Secrets are taken out of what is captured, and of the ids that clients choose."""

from __future__ import annotations

import re
from collections.abc import Sequence

REDACTED = "[redacted]"
MARGIN = 512
"""Characters beyond a cut that are looked at, so that a secret across it does not show its beginning."""
_SECRETS = (
    r"(?<=://)[^\s/@]{1,512}@",
    r"""(?i:\b(?:authorization|(?:x-)?api[-_]?key|(?:access|refresh|auth|id)[-_]token|client[-_]secret|passw(?:or)?d)["']?"""
    r"""\s{0,8}[:=]\s{0,8}["']?(?:(?:bearer|basic)\s{1,8})?[^\s"',;&]{4,})""",
    r"(?i:\bbearer\s{1,8}[\w.~+/-]{8,}=*)",
    r"(?<![A-Za-z\d])(?:sk|hr|pk|rk)[-_][A-Za-z\d_-]{12,}",
    r"(?<![A-Za-z\d])(?:hf_|gh[opsu]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z\d_-]{10,}",
    r"(?<![A-Za-z\d])(?:AKIA|ASIA)[A-Z\d]{16}",
    r"(?<![A-Za-z\d])AIza[\w-]{30,}",
    r"(?<![\w.-])eyJ[\w-]{5,}(?:\.[\w-]*){1,4}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
)
"""Credentials in URLs, named ones, bearer tokens, keys of well-known makers, JSON Web Tokens, private keys."""


class Redactor:
    """Replaces what must not be seen by `[redacted]`.

    Args:
        extra: more regular expressions; the configuration has checked them.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._pattern = re.compile("|".join(f"(?:{each})" for each in _SECRETS))
        self._extra = tuple(re.compile(each) for each in extra)

    def text(self, text: str) -> str:
        text = self._pattern.sub(REDACTED, text)
        for pattern in self._extra:
            text = pattern.sub(REDACTED, text)
        return text

    def name(self, text: str) -> str:
        """An id, which seldom looks like a secret."""
        return text if text.isalnum() and text.islower() and not self._extra else self.text(text)

    def prefix(self, text: str, limit: int) -> str:
        """The first `limit` characters."""
        if len(text) <= limit:
            return self.text(text)
        read = text[: limit + MARGIN]
        redacted = self.text(read)
        kept = redacted if len(read) == len(text) else redacted[: max(0, len(redacted) - MARGIN)]
        return kept[:limit] + "…"
