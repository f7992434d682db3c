"""What secrets and personal data look like, by name.

Every pattern is bounded, so that the time is linear in the text's length whatever the text is. The shapes of vendors'
keys are those that their documentation, or the scanners of GitHub and GitLab, tell.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from .config import Personal

REDACTED = "[redacted]"

Rule = tuple[tuple[str, ...], Callable[[str], str]]
"""What is replaced, behind a cheap test: a lower-case text without any of these pieces cannot contain it."""

_SCHEME = r"(?:(?:bearer|basic|digest|token|apikey)\s{1,8})?"
_PLACEHOLDER = r"(?:KEY\b|YOUR|TOKEN\b|<|\{|\$|\[redacted\])"

_HEADER_VALUE = re.compile(
    r"((?:authorization|(?:x-)?(?:goog-)?api[-_ ]?key|(?:access|refresh|auth|id)[-_]token|client[-_]secret"
    r"|passw(?:or)?d)"
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
_VENDOR_KEYS = {
    "gsk_": r"gsk_[A-Za-z\d]{20,}",  # Groq
    "xai-": r"xai-[A-Za-z\d]{20,}",
    "pplx-": r"pplx-[A-Za-z\d]{20,}",  # Perplexity
    "nvapi-": r"nvapi-[\w-]{20,}",  # NVIDIA
    "csk-": r"csk-[a-z\d]{20,}",  # Cerebras
    "r8_": r"r8_[A-Za-z\d]{20,}",  # Replicate
    "fw_": r"fw_[A-Za-z\d]{16,}",  # Fireworks
    "tgp_v1_": r"tgp_v1_[\w-]{20,}",  # Together
    "dapi": r"dapi[a-f\d]{32}",  # Databricks
    "tvly-": r"tvly-[\w-]{16,}",  # Tavily
    "lsv2_": r"lsv2_[a-z]{2}_\w{20,}",  # LangSmith
    "aiza": r"AIza[\w-]{30,}",  # Google
    "ya29.": r"ya29\.[\w-]{20,}",
    "akia": r"AKIA[A-Z\d]{16}(?![A-Za-z\d])",  # Amazon
    "asia": r"ASIA[A-Z\d]{16}(?![A-Za-z\d])",
    "absk": r"ABSK[A-Za-z\d+/]{40,}={0,2}",
    "ghp_": r"ghp_[A-Za-z\d]{30,}",
    "gho_": r"gho_[A-Za-z\d]{30,}",
    "ghu_": r"ghu_[A-Za-z\d]{30,}",
    "ghs_": r"ghs_[A-Za-z\d]{30,}",
    "ghr_": r"ghr_[A-Za-z\d]{30,}",
    "github_pat_": r"github_pat_\w{22,}",
    "glpat-": r"glpat-[\w-]{20,}",  # GitLab
    "xox": r"xox[abeprs]-[A-Za-z\d-]{10,}",  # Slack
    "k_live_": r"[prs]k_live_[A-Za-z\d]{16,}",  # Stripe
    "k_test_": r"[prs]k_test_[A-Za-z\d]{16,}",
}
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:(?!-----).){0,16384}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?",
    re.DOTALL,
)
_JWT = re.compile(r"(?<![\w.-])eyJ[\w-]{5,}(?:\.[\w-]*){1,4}", re.ASCII)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]{1,512}@")

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\w.-])(?:4|5[1-5]|2[2-7]|3[0-9]|6[0-9])\d?(?:[ -]?\d){11,17}(?![\w-]|\.\d)", re.ASCII)
_DIGITS = re.compile(r"\d(?:[ -]?\d){12}", re.ASCII)
_IBAN = re.compile(r"(?<![A-Za-z\d])[A-Z]{2}\d{2}(?: ?[A-Z\d]){11,30}", re.ASCII)
_IBAN_BEGIN = re.compile(r"[A-Z]{2}\d\d", re.ASCII)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(rf"(?<![\w.-]){_BYTE}(?:\.{_BYTE}){{3}}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[A-Fa-f\d:]{2,39}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])", re.ASCII)

_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SD18 "
        "SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
"""Of the IBAN registry (ISO 13616): how many characters a country's have."""


def is_card(digits: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1, annex B) and the lengths that cards have."""
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    total = sum(map(int, digits[-1::-2])) + sum(value - 9 if value > 9 else value for value in doubled)
    return total % 10 == 0


def is_iban(text: str) -> bool:
    """ISO 13616's check: its length, and the remainder by 97 (ISO 7064)."""
    if len(text) != _IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(each, 36)) for each in text[4:] + text[:4])) % 97 == 1


def _card(match: re.Match[str]) -> str:
    digits = match[0].replace(" ", "").replace("-", "")
    return REDACTED if is_card(digits) else match[0]


def _iban(match: re.Match[str]) -> str:
    """What follows in capitals may have been taken for a part of it."""
    text = match[0]
    places = [place for place, each in enumerate(text) if each != " "]
    length = _IBAN_LENGTHS.get(text[:2], 0)
    if not 0 < length <= len(places):
        return text
    end = places[length - 1] + 1
    return REDACTED + text[end:] if is_iban(text[:end].replace(" ", "")) else text


def _ipv6(match: re.Match[str]) -> str:
    if match[0].count(":") < 2 or not any(each.isalnum() for each in match[0]):
        return match[0]
    try:
        ipaddress.IPv6Address(match[0])
    except ValueError:
        return match[0]
    return REDACTED


def replaces(pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    """What replaces a pattern's matches in a text."""
    return lambda text: pattern.sub(replacement, text)


def _without_cards(text: str) -> str:
    return _CARD.sub(_card, text) if len(text) > 12 and _DIGITS.search(text) else text


def _without_ibans(text: str) -> str:
    return _IBAN.sub(_iban, text) if _IBAN_BEGIN.search(text) else text


SECRETS: tuple[Rule, ...] = (
    (("-----begin",), replaces(_PRIVATE_KEY, REDACTED)),
    (("://",), replaces(_URL_CREDENTIALS, REDACTED + "@")),
    (("authorization", "api", "token", "client", "passw"), replaces(_HEADER_VALUE, rf"\1{REDACTED}")),
    (("bearer",), replaces(_BEARER, rf"\1{REDACTED}")),
    (("sk-", "hr-", "hf_"), replaces(_KEY, REDACTED)),
    *(
        ((piece,), replaces(re.compile(rf"(?<![A-Za-z\d]){key}", re.ASCII), REDACTED))
        for piece, key in _VENDOR_KEYS.items()
    ),
    (("eyj",), replaces(_JWT, REDACTED)),
)
"""Always replaced."""

PERSONAL: dict[Personal, tuple[Rule, ...]] = {
    "emails": ((("@",), replaces(_EMAIL, REDACTED)),),
    "cards": ((("",), _without_cards),),
    "ibans": ((("",), _without_ibans),),
    "addresses": (((":",), replaces(_IPV6, _ipv6)), ((".",), replaces(_IPV4, REDACTED))),
}
"""Replaced if it is wanted."""


def apply(rules: tuple[Rule, ...], text: str) -> str:
    """The text with everything replaced that these rules know."""
    lower = text.lower()
    for pieces, replace in rules:
        for piece in pieces:
            if piece in lower:
                text = replace(text)
                break
    return text
