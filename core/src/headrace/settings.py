"""Reading a configuration file: TOML → values from environment and files → checked Structs, every problem at once."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .config import Config, Secret
from .errors import ConfigError, Problem
from .references import FromText, Missing, missing_in, plain, resolve, without_missing

T = TypeVar("T")

SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
"""What the environment may say for true and false."""


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: with every problem, each under `FILE: [table] key`.
    """
    return _unless(*examine(read(path), source=str(path), environ=environ))


def read(path: Path) -> dict[str, Any]:
    """A TOML file as it stands. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"is not valid TOML: {error}")]) from error


def parse(
    document: Mapping[str, Any], *, source: str = "configuration", environ: Mapping[str, str] = os.environ
) -> Config:
    """Check a configuration that is already a mapping. Raises ConfigError as `load` does."""
    return _unless(*examine(document, source=source, environ=environ))


def _unless(config: Config, problems: list[Problem]) -> Config:
    if problems:
        raise ConfigError(problems)
    return config


def examine(
    document: Mapping[str, Any], *, source: str = "configuration", environ: Mapping[str, str] = os.environ
) -> tuple[Config, list[Problem]]:
    """What a document says, and what is wrong with it.

    If anything is wrong with core's tables, the configuration is the default one with the document's plugins, so that
    those can be checked all the same.
    """
    decoder = Decoder(source)
    tables = resolve({name: table for name, table in document.items() if name != "plugins"}, environ)
    config: Config | None = decoder.decode(_without_unused_backends(tables), Config, ())
    plugins = _plugin_tables(document.get("plugins", {}), environ, decoder)
    _check_names(tables, decoder)
    usable = Config() if config is None or decoder.problems else config
    return msgspec.structs.replace(usable, plugins=plugins), decoder.problems


def decode_plugin(name: str, table: Mapping[str, Any], struct: type[T], source: str) -> T:
    """Check one `[plugins.NAME]` table against the plugin's own Struct. Raises ConfigError."""
    decoder = Decoder(source)
    values = {key: value for key, value in table.items() if key != "enabled"}
    config: T | None = decoder.decode(values, struct, ("plugins", name))
    if config is None or decoder.problems:
        raise ConfigError(decoder.problems)
    return config


def _plugin_tables(plugins: Any, environ: Mapping[str, str], decoder: Decoder) -> dict[str, dict[str, Any]]:
    """The tables with their references followed; `[plugins.logs] file = "x"` is that plugin's key, not a reference."""
    if not isinstance(plugins, dict):
        decoder.add(("plugins",), "must be a table of tables: write [plugins.NAME]")
        return {}
    for name in (name for name, table in plugins.items() if not isinstance(table, dict)):
        decoder.add(("plugins", name), f"must be a table: write [plugins.{name}]")
    return {
        name: {key: resolve(value, environ) for key, value in table.items()}
        for name, table in plugins.items()
        if isinstance(table, dict)
    }


def _without_unused_backends(document: dict[str, Any]) -> dict[str, Any]:
    """Forgive backends that no model uses what is missing in them, so that one file can name many."""
    backends, models = document.get("backends"), document.get("models", {})
    if not isinstance(backends, dict) or not isinstance(models, dict):
        return document
    used = {name for model in models.values() if isinstance(model, dict) for name in _names_in(model)}
    kept = {
        name: table if name in used else without_missing(table)
        for name, table in backends.items()
        if name in used or not (isinstance(table, dict) and isinstance(table.get("provider"), Missing))
    }
    return {**document, "backends": kept}


def _names_in(model: dict[str, Any]) -> Iterator[str]:
    """The backends that a model's table refers to by name."""
    switch = model.get("use_fallback", True)
    wanted = SWITCHES.get(switch.strip().lower(), False) if isinstance(switch, str) else bool(switch)
    for names in (model.get("targets"), model.get("fallback") if wanted else None):
        if isinstance(names, list):
            yield from (name for name in names if isinstance(name, str))


def _check_names(document: dict[str, Any], decoder: Decoder) -> None:
    """Find references to backends that are not there, and names that two models claim.

    Looks at tables as they were read, so that these problems stand beside those of their values.
    """
    models, backends = document.get("models"), document.get("backends", {})
    if not isinstance(models, dict) or not isinstance(backends, dict):
        return
    seen: dict[str, str] = {}
    for name, model in models.items():
        if isinstance(model, dict):
            _check_targets(name, model, backends, decoder)
            _check_aliases(name, model.get("aliases"), seen, decoder)
            for key in ("fallback_models", "context_window_fallbacks"):
                _check_models(name, key, model.get(key), models, decoder)


def _check_models(name: str, key: str, named: Any, models: dict[str, Any], decoder: Decoder) -> None:
    """Models that one falls back on."""
    for each in named if isinstance(named, list) else ():
        if each == name:
            decoder.add(("models", name, key), "a model cannot fall back on itself")
        elif isinstance(each, str) and each not in models:
            known = ", ".join(other for other in models if other != name) or "none"
            decoder.add(("models", name, key), f"there is no [models.{each}] (there are: {known})")


def _check_targets(name: str, model: dict[str, Any], backends: dict[str, Any], decoder: Decoder) -> None:
    for target in dict.fromkeys(_names_in(model)):
        if target not in backends:
            known = ", ".join(backends) or "none is defined"
            decoder.add(("models", name, "targets"), f"there is no [backends.{target}] (there are: {known})")
    if not model.get("targets") and not next(_names_in(model), None):
        decoder.add(("models", name, "targets"), "names no backend: a model needs at least one target")


def _check_aliases(name: str, aliases: Any, seen: dict[str, str], decoder: Decoder) -> None:
    for alias in (name, *(aliases if isinstance(aliases, list) else ())):
        if isinstance(alias, str) and alias in seen:
            decoder.add_table(("models", name), f"the name {alias!r} is taken by [models.{seen[alias]}]")
        elif isinstance(alias, str):
            seen[alias] = name


class Decoder:
    """Turns plain values into Structs and collects every problem instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def add(self, path: tuple[str, ...], message: str) -> None:
        """A problem of one key."""
        self.problems.append(Problem(_place(self.source, path), message))

    def add_table(self, path: tuple[str, ...], message: str) -> None:
        """A problem of a whole table."""
        self.problems.append(Problem(f"{self.source}: [{'.'.join(path)}]" if path else self.source, message))

    def decode(self, value: Any, kind: Any, path: tuple[str, ...]) -> Any:
        """The value as `kind`, or None when it had problems (which are then in `problems`)."""
        origin = typing.get_origin(kind)
        if isinstance(value, dict):
            struct = _struct_in(kind)
            if struct is not None:
                return self._struct(value, struct, path)
            if origin is dict:
                return self._dict(value, typing.get_args(kind)[1], path)
        if isinstance(value, list) and (origin is list or typing.get_args(kind)[1:] == (...,)):
            item = typing.get_args(kind)[0]
            found = [self.decode(each, item, (*path, str(n))) for n, each in enumerate(value)]
            return found if origin is list else tuple(found)
        return self._leaf(value, kind, path)

    def _struct(self, value: dict[str, Any], struct: type[Any], path: tuple[str, ...]) -> Any:
        before = len(self.problems)
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for key in (key for key in value if key not in fields):
            hint = _quoted(path, key) if isinstance(value[key], dict) else ""
            self.add((*path, key), f"is not a known key{hint or _suggest(key, fields)}")
        for name, field in fields.items():
            if field.required and name not in value:
                self.add((*path, name), "is required")
        known = {
            field.name: self.decode(value[name], field.type, (*path, name))
            for name, field in fields.items()
            if name in value
        }
        if len(self.problems) > before:
            return None
        try:
            return struct(**known)
        except (ValueError, TypeError) as error:  # what a plugin's __post_init__ refuses
            self.add_table(path, str(error))
            return None

    def _dict(self, value: dict[str, Any], kind: Any, path: tuple[str, ...]) -> dict[str, Any]:
        return {key: self.decode(item, kind, (*path, key)) for key, item in value.items()}

    def _leaf(self, value: Any, kind: Any, path: tuple[str, ...]) -> Any:
        absent = [each.message for each in missing_in(value)]
        for message in absent:
            self.add(path, message)
        if absent:
            return None
        text = isinstance(value, FromText)
        if text and _may_be_switch(kind) and value.strip().lower() in SWITCHES:
            return SWITCHES[value.strip().lower()]
        try:
            return msgspec.convert(plain(value), kind, strict=not text, dec_hook=_decode_secret)
        except msgspec.ValidationError as error:
            message, _, inner = str(error).partition(" - at `$")
            message += _explained(value, kind)
            self.add((*path, *([inner.rstrip("`").lstrip(".")] if inner else ())), message)
        return None


def _explained(value: Any, kind: Any) -> str:
    """What msgspec does not say: the allowed words, and where a value came from."""
    words = next((typing.get_args(each) for each in (kind, *typing.get_args(kind)) if _is_literal(each)), ())
    if words:
        return f" (one of: {', '.join(map(str, words))})"
    if isinstance(value, FromText) and value.origin:
        return f" (it comes from {value.origin})"
    if isinstance(value, dict) and ("env" in value or "file" in value):
        return "; a reference is { env = NAME }, with default and split if need be, or { file = PATH }"
    return ""


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _may_be_switch(kind: Any) -> bool:
    return kind is bool or (
        typing.get_origin(kind) in (typing.Union, types.UnionType) and bool in typing.get_args(kind)
    )


def _decode_secret(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError(f"Expected `str`, got `{type(value).__name__}`")


def _struct_in(kind: Any) -> type[Any] | None:
    """The one Struct that a table may become, if `kind` is one or a union with one."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(filter(None, map(_struct_in, typing.get_args(kind))), None)
    return None


def _place(source: str, path: tuple[str, ...]) -> str:
    """`FILE: [table] key`; an element of a list is `key[0]`, and what is in it `key[0].inner`."""
    if len(path) < 2:
        return f"{source}: {path[0]}" if path else source
    key_at = next((at - 1 for at, part in enumerate(path) if part.isdigit() and at > 1), len(path) - 1)
    key = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path[key_at:]).lstrip(".")
    return f"{source}: [{'.'.join(path[:key_at])}] {key}"


def _quoted(path: tuple[str, ...], key: str) -> str:
    """A table inside a model's or a backend's most often comes from a dot in its name."""
    if len(path) == 2 and path[0] in ("models", "backends"):
        return f'; is it part of the name? Then quote it: [{path[0]}."{path[1]}.{key}"]'
    return ""


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(key, fields, n=1)
    known = f" (known: {', '.join(sorted(fields))})" if fields else "; this table has none"
    return f"; did you mean {close[0]!r}?" if close else known
