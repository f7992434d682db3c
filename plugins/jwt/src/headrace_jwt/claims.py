"""What the claims of a token must say, and who they say it is. Called only once the signature is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headrace.exchange import Principal, Role

from .config import JwtConfig, accepted
from .token import Refused, shown

PREFIX = "jwt:"
"""Begins the id of every caller known by a token, so that it is nobody's API key and nobody's name elsewhere."""
TEXT_LIMIT = 200
"""Characters of an id, a name or a team."""
MIGHT: tuple[Role, ...] = ("admin", "metrics", "user")
"""Roles, the mightiest first."""
MISSING: Any = object()


class ClaimRules:
    """Checks claims and reads the caller from them, as the configuration says. Stateless."""

    def __init__(self, config: JwtConfig) -> None:
        self._config = config
        self._issuers = accepted(config.issuer)
        self._audiences = accepted(config.audience)

    def check(self, claims: Mapping[str, Any], now: float) -> float:
        """Check what a token must say about itself.

        Args:
            now: seconds since the epoch.

        Returns:
            When it stops being accepted, in seconds since the epoch: `exp` and the leeway.

        Raises:
            Refused.
        """
        until = self._check_times(claims, now)
        self._check_issuer(claims)
        self._check_audience(claims)
        for name in self._config.required_claims:
            if find(claims, name) in (MISSING, None):
                raise _lacks(name)
        return until

    def _check_times(self, claims: Mapping[str, Any], now: float) -> float:
        leeway = self._config.leeway
        expires = _moment(claims, "exp")
        if expires is None:
            raise _lacks("exp")
        if expires + leeway <= now:
            raise Refused("The token has expired: get a new one.", f"exp is {now - expires:.0f} s ago")
        issued = _moment(claims, "iat")
        for name, moment in (("nbf", _moment(claims, "nbf")), ("iat", issued)):
            if moment is not None and moment - leeway > now:
                raise Refused(
                    "The token is not valid yet: wait, or have the clock of its issuer set right.",
                    f"{name} is {moment - now:.0f} s ahead",
                )
        if self._config.max_lifetime is not None:
            self._check_lifetime(expires, issued, self._config.max_lifetime)
        return expires + leeway

    def _check_lifetime(self, expires: float, issued: float | None, most: float) -> None:
        if issued is None:
            raise _lacks("iat")
        if expires - issued > most:
            raise Refused(
                f"The token is valid for too long: get one that lasts {most:g} s at most.",
                f"it lasts {expires - issued:.0f} s",
            )

    def _check_issuer(self, claims: Mapping[str, Any]) -> None:
        if self._issuers is None:
            return
        issuer = claims.get("iss")
        if issuer is None:
            raise _lacks("iss")
        if not isinstance(issuer, str) or issuer not in self._issuers:
            raise Refused(
                "The token is from an issuer that this gateway does not accept: get one from the right issuer.",
                f"iss is {shown(issuer)}",
            )

    def _check_audience(self, claims: Mapping[str, Any]) -> None:
        if self._audiences is None:
            return
        audience = claims.get("aud")
        if audience is None:
            raise _lacks("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(each, str) and each in self._audiences for each in named):
            raise Refused(
                "The token was made for another service: ask its issuer for one with this gateway as its audience.",
                f"aud is {shown(audience)}",
            )

    def principal(self, claims: Mapping[str, Any]) -> Principal:
        """Who asks. Raises Refused if the claims do not say it clearly."""
        config = self._config
        metadata = {name: find(claims, name) for name in config.metadata_claims}
        return Principal(
            id=self._id(claims),
            name=_name(claims, config.name_claim),
            role=self._role(claims),
            team=_team(claims, config.team_claim),
            models=self._models(claims),
            metadata={name: value for name, value in metadata.items() if value is not MISSING},
        )

    def _id(self, claims: Mapping[str, Any]) -> str:
        """With several issuers, who may each have a caller of one name, the issuer is part of the id."""
        path = self._config.id_claim
        value = find(claims, path)
        if value in (MISSING, None, ""):
            raise _lacks(path)
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not _is_text(text) or any(letter.isspace() for letter in text):
            raise _unusable(path, "it must be a short text without spaces")
        if self._issuers is not None and len(self._issuers) > 1:
            return f"{PREFIX}{claims['iss']}#{text}"
        return PREFIX + str(text)

    def _role(self, claims: Mapping[str, Any]) -> Role:
        path = self._config.role_claim
        if path is None:
            return "user"
        value = find(claims, path)
        given = value if isinstance(value, list) else [value]
        meant = {self._config.roles[each] for each in given if isinstance(each, str) and each in self._config.roles}
        return next((role for role in MIGHT if role in meant), "user")

    def _models(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        path, default = self._config.models_claim, self._config.default_models
        value = MISSING if path is None else find(claims, path)
        if value is MISSING:
            return None if default is None else frozenset(default)
        names = value.split() if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _unusable(str(path), "it must be a list of names, or names with spaces between them")
        return frozenset(names)


def find(claims: Mapping[str, Any], path: str) -> Any:
    """The claim at a path, or MISSING. `a.b.c` is `c` in `b` in `a`; names may have dots of their own.

    A claim whose whole name is the path comes first (`https://example.com/roles`), then the shortest first step.
    """
    if path in claims:
        return claims[path]
    at = path.find(".")
    while at >= 0:
        inner = claims.get(path[:at])
        if isinstance(inner, dict) and (found := find(inner, path[at + 1 :])) is not MISSING:
            return found
        at = path.find(".", at + 1)
    return MISSING


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """A time, in seconds since the epoch; None if the claim is not there."""
    value = claims.get(name)
    if value is None:
        return None
    try:
        moment = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        moment = math.nan
    if math.isnan(moment):
        raise _unusable(name, "it must be a number of seconds")
    return moment


def _name(claims: Mapping[str, Any], path: str | None) -> str:
    """A name is for people to read: one that cannot be shown is left out."""
    value = MISSING if path is None else find(claims, path)
    return value if _is_text(value) else ""


def _team(claims: Mapping[str, Any], path: str | None) -> str | None:
    """A team may have a budget: one that is not clear is refused, or its members would escape it."""
    value = MISSING if path is None else find(claims, path)
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value in (MISSING, None, ""):
        return None
    if not _is_text(value):
        raise _unusable(str(path), "it must be the name of one team")
    return str(value)


def _is_text(value: Any) -> bool:
    """Whether a value can stand in a log line as it is: no control characters, none that turn the reading direction."""
    return isinstance(value, str) and 0 < len(value) <= TEXT_LIMIT and value.isprintable()


def _lacks(name: str) -> Refused:
    return Refused(f"The token lacks the claim {name!r}: ask its issuer for one that has it.", f"no claim {name!r}")


def _unusable(name: str, rule: str) -> Refused:
    return Refused(f"The token's claim {name!r} cannot be used: {rule}.", f"claim {name!r}: {rule}")
