"""The options that say what a key is, on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click
import msgspec

from headrace.limits import BUDGETS, RATES, Budget, RateLimits

from .changes import LABEL_LIMIT, Changes
from .keyformat import holds_key
from .record import Record

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_SECONDS = 100 * 365 * 86_400
CLEARABLE = ("owner", "team", "models", "endpoints", "limits", "budget", "metadata", "expires")

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`30d`, `12h`, …: a number and a unit, as seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,10})([smhdw])", value.strip(), re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration: write a number and s, m, h, d or w, for instance 30d")
    found = int(match[1]) * UNITS[match[2]]
    if not 0 < found <= LONGEST_SECONDS:
        raise click.BadParameter(f"{value!r} is not between one second and 100 years")
    return float(found)


def seconds_or_none(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """The same, and 0 for no time at all."""
    return 0.0 if value.strip() == "0" else seconds(ctx, param, value) or 0.0


def checked_name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The name of a key, without blanks around it."""
    name = value.strip() if value is not None else None
    if name is not None and (not name or len(name) > LABEL_LIMIT or not name.isprintable()):
        raise click.BadParameter(f"a name has 1 to {LABEL_LIMIT} printable characters")
    if name is not None and holds_key(name):
        raise click.BadParameter("a whole key is no name: it would stand in every log")
    return name


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time from now, or a date."""
    if value is None:
        return None
    if re.match(r"[0-9]{4}-", value.strip()):
        found = _date(value.strip())
        if found <= datetime.now(UTC):
            raise click.BadParameter(f"{value!r} is over already")
        return found
    return datetime.now(UTC) + timedelta(seconds=seconds(ctx, param, value) or 0.0)


def _date(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a date: write 2027-01-31, or 2027-01-31T18:00:00Z") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _pairs(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE`, repeated."""
    found = [each.partition("=") for each in value]
    for name, separator, _ in found:
        if not name or not separator:
            raise click.BadParameter(f"{name!r}: write NAME=VALUE")
    return {name: text for name, _, text in found}


ROLE = click.option("--role", type=click.Choice(["user", "admin", "metrics"]))
FIELDS = (
    click.option("--owner", callback=checked_name, help="Whose key it is."),
    click.option("--team", callback=checked_name, help="The owner's team."),
    click.option("--model", "models", multiple=True, metavar="MODEL", help="Allow this model only; may be repeated."),
    click.option(
        "--endpoint", "endpoints", multiple=True, metavar="NAME", help="Allow this endpoint only; may be repeated."
    ),
    click.option(
        *("--limit", "limits"), multiple=True, callback=_pairs, metavar="NAME=N", help=f"One of {', '.join(RATES)}."
    ),
    click.option("--budget", multiple=True, callback=_pairs, metavar="NAME=N", help=f"One of {', '.join(BUDGETS)}."),
    click.option("--metadata", multiple=True, callback=_pairs, metavar="NAME=TEXT", help="Whatever else to keep."),
    click.option("--expires", callback=_moment, metavar="30d", help="Expire after this time (s, m, h, d, w), or then."),
)


def key_options(command: AnyCommand) -> AnyCommand:
    """All of them but the name and the role."""
    for option in reversed(FIELDS):
        command = option(command)
    return command


def changes_of(options: dict[str, Any], base: Record | None = None, clear: Sequence[str] = ()) -> Changes:
    """What the options ask for. Numbers and metadata join those of `base`; `NAME=` takes one away, `clear` all.

    Raises:
        click.ClickException: they do not make sense.
    """
    values: dict[str, Any] = dict.fromkeys(clear)
    values |= {name: value for name, value in options.items() if value not in (None, (), {})}
    for name, kind in (("limits", RateLimits), ("budget", Budget)):
        if options.get(name):
            values[name] = _numbers(name, kind, None if name in clear else getattr(base, name, None), options[name])
    if options.get("metadata"):
        kept = {} if base is None or "metadata" in clear else base.metadata
        values["metadata"] = {**kept, **options["metadata"]}
    try:
        return msgspec.convert(values, Changes)
    except msgspec.ValidationError as error:
        raise click.ClickException(str(error)) from error


def _numbers(name: str, kind: type[Any], before: Any, given: dict[str, str]) -> Any:
    known = kind.__struct_fields__
    for field in given.keys() - set(known):
        raise click.ClickException(f"{field!r} is no {name.removesuffix('s')}: there are {', '.join(known)}")
    merged = {**(msgspec.structs.asdict(before) if before is not None else {}), **given}
    kept = {field: value for field, value in merged.items() if value not in (None, "")}
    try:
        return msgspec.convert({field: _number(field, value) for field, value in kept.items()}, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        raise click.ClickException(f"{path.rstrip('`') or name}: {text}") from error


def _number(field: str, value: Any) -> Any:
    """As TOML writes numbers: 1_000_000."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if field.startswith("cost") else int(value)
    except ValueError:
        raise click.ClickException(f"{field}: {value!r} is no number; write it like 100000 or 1_000_000") from None
