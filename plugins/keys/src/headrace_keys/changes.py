"""What may be said about a key, by whatever way it is said: options, JSON, or a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headrace.config import Strict
from headrace.exchange import Role
from headrace.limits import Budget, RateLimits

from .keyformat import holds_key
from .record import Record

if TYPE_CHECKING:
    from headrace.gateway import Gateway

LABEL_LIMIT = 100
"""Characters of a name, an owner, a team: they stand in log lines and tables."""
WORD_LIMIT = 256
"""Characters of a model's name, as in requests."""
METADATA_BYTES = 4096
"""Of a key's metadata as JSON: they are held in memory for every key."""
LARGEST = 2**63 - 1

Label = Annotated[str, Meta(min_length=1, max_length=LABEL_LIMIT)]
Word = Annotated[str, Meta(min_length=1, max_length=WORD_LIMIT)]
Words = Annotated[tuple[Word, ...], Meta(max_length=1000)]
Metadata = dict[Label, str | int | float | bool]
Moment = Annotated[datetime, Meta(tz=True)]


class Changes(Strict, frozen=True):
    """What a key is to become. What is not given stays, or is nothing special if the key is new; None clears."""

    name: Label | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    owner: Label | UnsetType | None = UNSET
    team: Label | UnsetType | None = UNSET
    models: Words | UnsetType | None = UNSET
    endpoints: Words | UnsetType | None = UNSET
    limits: RateLimits | UnsetType | None = UNSET
    budget: Budget | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET
    expires: Moment | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem is not None:
            raise ValueError(problem)

    def given(self) -> dict[str, Any]:
        """The fields of a Record that are given, as a Record has them."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: _kept(name, value) for name, value in values.items() if value is not UNSET}


AnyChanges = TypeVar("AnyChanges", bound=Changes)
FIELDS = Changes.__struct_fields__
DEFAULTS: Mapping[str, Any] = {"role": "user", "metadata": {}, **dict.fromkeys(FIELDS[2:8]), "expires": None}
"""Of a new key, all but its name."""


def applied(record: Record, changes: Changes) -> Record:
    """The record as it becomes."""
    return msgspec.structs.replace(record, **changes.given())


def _kept(name: str, value: Any) -> Any:
    if name == "metadata":
        return value or {}
    if name in ("limits", "budget"):  # one without numbers limits nothing
        return value if value is not None and any(part is not None for part in msgspec.structs.astuple(value)) else None
    if name in ("models", "endpoints"):
        return None if value is None else tuple(dict.fromkeys(value))
    return value.timestamp() if isinstance(value, datetime) else value


def _problems(changes: Changes) -> Iterator[str]:
    for name in ("name", "owner", "team"):
        value = getattr(changes, name)
        if isinstance(value, str) and (not value.isprintable() or value != value.strip()):
            yield f"{name}: has 1 to {LABEL_LIMIT} printable characters, none of them blank at either end"
        if isinstance(value, str) and holds_key(value):
            yield f"{name}: has a whole key in it, which would stand in every log"
    for name in ("models", "endpoints"):
        value = getattr(changes, name)
        if isinstance(value, tuple) and not all(map(str.isprintable, value)):
            yield f"{name}: has characters that cannot be printed"
    for name in ("limits", "budget"):
        value = getattr(changes, name)
        if isinstance(value, msgspec.Struct):
            yield from _number_problems(name, value)
    if isinstance(changes.metadata, dict):
        yield from _metadata_problems(changes.metadata)
    if isinstance(changes.expires, datetime):
        yield from _moment_problems(changes.expires)


def _number_problems(name: str, value: msgspec.Struct) -> Iterator[str]:
    for field, number in msgspec.structs.asdict(value).items():
        if number is not None and not number <= LARGEST:
            yield f"{name}.{field}: is too large"


def _metadata_problems(metadata: dict[str, Any]) -> Iterator[str]:
    for key, value in metadata.items():
        if isinstance(value, str) and holds_key(value):
            yield "metadata: has a whole key in it"
        if not key.isprintable():
            yield "metadata: a name has characters that cannot be printed"
        if isinstance(value, float) and not math.isfinite(value):
            yield f"metadata.{key}: is not a number that JSON has"
        if isinstance(value, int) and abs(value) > LARGEST:
            yield f"metadata.{key}: is too large"
    try:
        size = len(msgspec.json.encode(metadata))
    except (UnicodeEncodeError, OverflowError):
        yield "metadata: has characters that are not valid Unicode, or numbers that are too large"
        return
    if size > METADATA_BYTES:
        yield f"metadata: takes {size} bytes as JSON; {METADATA_BYTES} are allowed"


def _moment_problems(moment: datetime) -> Iterator[str]:
    if not 1970 <= moment.year < 9999:  # what every clock, database and time zone can say
        yield "expires: is not a year that makes sense"


def known(changes: AnyChanges, gateway: Gateway) -> tuple[AnyChanges, list[str]]:
    """The changes with models' own names for aliases, for core compares own names, and what is unknown in them."""
    warnings: list[str] = []
    if isinstance(changes.models, tuple):
        models = tuple(_own_name(gateway, name, warnings) for name in changes.models)
        changes = msgspec.structs.replace(changes, models=models)
    if isinstance(changes.endpoints, tuple):
        names = sorted({endpoint.name for endpoint in gateway.endpoints.values()})
        warnings += [_unknown("endpoint", name, names) for name in changes.endpoints if name not in names]
    warnings += [unkept(name) for name in KEPT_BY if getattr(changes, name) and KEPT_BY[name] not in gateway.plugins]
    return changes, warnings


KEPT_BY = {"limits": "ratelimit", "budget": "budget"}
"""What a key may have, and the plugin that sees to it."""


def unkept(name: str) -> str:
    """What is said of limits or a budget that nothing enforces."""
    return f"the key's {name} will not be enforced: the plugin {KEPT_BY[name]!r} is not enabled"


def _own_name(gateway: Gateway, name: str, warnings: list[str]) -> str:
    names = list(gateway.models.names())
    if name in names:
        return gateway.models.find(name).name
    warnings.append(_unknown("model", name, names))
    return name


def _unknown(what: str, name: str, known: list[str]) -> str:
    there = "in the configuration " if what == "model" else ""
    return f"there is no {what} {name!r} {there}(there are: {', '.join(known) or 'none'})"
