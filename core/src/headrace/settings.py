"""Reading a configuration file: TOML → values from environment and files → checked Structs, every problem at once."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .config import Config, Secret
from .errors import ConfigError, Problem

T = TypeVar("T")
REFERENCE_KEYS = ({"env"}, {"env", "default"}, {"env", "split"}, {"env", "default", "split"}, {"file"})


class _FromText(str):
    """A string that came from the environment or a file, and may have to become a number."""

    __slots__ = ()


class _Missing(msgspec.Struct):
    """Stands where an environment variable or file should have given a value."""

    message: str


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: with every problem, each under `FILE: [table] key`.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"is not valid TOML: {error}")]) from error
    return parse(document, source=str(path), environ=environ)


def parse(
    document: Mapping[str, Any], *, source: str = "configuration", environ: Mapping[str, str] = os.environ
) -> Config:
    """Check a configuration that is already a mapping. Raises ConfigError as `load` does."""
    decoder = Decoder(source)
    plugins = _resolve_plugins(document.get("plugins", {}), environ)
    resolved = resolve({name: table for name, table in document.items() if name != "plugins"}, environ)
    config: Config | None = decoder.decode(_without_unused_backends(resolved), Config, ())
    if isinstance(plugins, dict):
        for name, table in plugins.items():
            if not isinstance(table, dict):
                decoder.add(("plugins", name), "must be a table: write [plugins." + name + "]")
        if config is not None:
            config = msgspec.structs.replace(config, plugins=plugins)
    else:
        decoder.add(("plugins",), "must be a table of tables: write [plugins.NAME]")
    if config is not None:
        _check_references(config, decoder)
    if config is None or decoder.problems:
        raise ConfigError(decoder.problems)
    return config


def decode_plugin(name: str, table: Mapping[str, Any], struct: type[T], source: str) -> T:
    """Check one `[plugins.NAME]` table against the plugin's own Struct. Raises ConfigError."""
    decoder = Decoder(source)
    values = {key: value for key, value in table.items() if key != "enabled"}
    config: T | None = decoder.decode(values, struct, ("plugins", name))
    if config is None or decoder.problems:
        raise ConfigError(decoder.problems)
    return config


def resolve(value: Any, environ: Mapping[str, str]) -> Any:
    """Replace every `{ env = … }` and `{ file = … }` by its value, all the way down."""
    if isinstance(value, dict):
        if any(value.keys() == keys for keys in REFERENCE_KEYS) and isinstance(
            value.get("env", value.get("file")), str
        ):
            return _resolve_reference(value, environ)
        return {key: resolve(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, environ) for item in value]
    return value


def _resolve_plugins(plugins: Any, environ: Mapping[str, str]) -> Any:
    """As `resolve`, but `[plugins.logs] file = "x"` is that plugin's key, not a reference."""
    if not isinstance(plugins, dict):
        return plugins
    return {
        name: {key: resolve(value, environ) for key, value in table.items()} if isinstance(table, dict) else table
        for name, table in plugins.items()
    }


def _resolve_reference(reference: dict[str, Any], environ: Mapping[str, str]) -> Any:
    if "file" in reference:
        try:
            return _FromText(Path(reference["file"]).expanduser().read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            return _Missing(f"the file {reference['file']} cannot be read: {error}")
    name = reference["env"]
    text: Any = environ.get(name)
    if text is None and "default" not in reference:
        return _Missing(f"the environment variable {name} is not set, and there is no default")
    value = reference["default"] if text is None else _FromText(text)
    if "split" in reference and isinstance(value, str):
        return [_FromText(part.strip()) for part in value.split(reference["split"]) if part.strip()]
    return value


def _without_unused_backends(document: dict[str, Any]) -> dict[str, Any]:
    """Drop what is missing in backends that no model uses, so that one file can name many."""
    backends, models = document.get("backends"), document.get("models")
    if not isinstance(backends, dict) or not isinstance(models, dict):
        return document
    used = {name for model in models.values() if isinstance(model, dict) for name in _names_in(model)}
    kept = {
        name: table if name in used or not isinstance(table, dict) else _without_missing(table)
        for name, table in backends.items()
    }
    return {**document, "backends": kept}


def _names_in(model: dict[str, Any]) -> Iterable[str]:
    fallback = model.get("fallback") if _is_true(model.get("use_fallback", True)) else None
    for names in (model.get("targets"), fallback):
        if isinstance(names, list):
            yield from (name for name in names if isinstance(name, str))


def _is_true(value: Any) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "on") if isinstance(value, str) else bool(value)


def _without_missing(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if not isinstance(value, _Missing)}


def _check_references(config: Config, decoder: Decoder) -> None:
    for name, model in config.models.items():
        where = ("models", name)
        used = [*model.targets, *(model.fallback if model.use_fallback else ())]
        if not used:
            decoder.add((*where, "targets"), "names no backend: a model needs at least one target")
        for target in used:
            if isinstance(target, str) and target not in config.backends:
                known = ", ".join(config.backends) or "none is defined"
                decoder.add((*where, "targets"), f"there is no [backends.{target}] (there are: {known})")
    seen: dict[str, str] = {}
    for name, model in config.models.items():
        for alias in (name, *model.aliases):
            if alias in seen:
                decoder.add(("models", name), f"the name {alias!r} is taken by [models.{seen[alias]}]")
            seen.setdefault(alias, name)


class Decoder:
    """Turns plain values into Structs and collects every problem instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def add(self, path: tuple[str, ...], message: str) -> None:
        self.problems.append(Problem(_place(self.source, path), message))

    def decode(self, value: Any, kind: Any, path: tuple[str, ...]) -> Any:
        """The value as `kind`, or None when it had problems (which are then in `problems`)."""
        if isinstance(value, _Missing):
            self.add(path, value.message)
            return None
        origin = typing.get_origin(kind)
        if isinstance(value, dict):
            struct = _struct_in(kind)
            if struct is not None:
                return self._struct(value, struct, path)
            if origin is dict:
                return self._dict(value, typing.get_args(kind)[1], path)
        if isinstance(value, list) and origin is list:
            item = typing.get_args(kind)[0]
            return [self.decode(each, item, (*path, str(n))) for n, each in enumerate(value)]
        return self._leaf(value, kind, path)

    def _struct(self, value: dict[str, Any], struct: type[Any], path: tuple[str, ...]) -> Any:
        before = len(self.problems)
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for key in value.keys() - fields.keys():
            self.add((*path, key), f"is not a known key{_suggest(key, fields)}")
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
            self.add(path, str(error))
            return None

    def _dict(self, value: dict[str, Any], kind: Any, path: tuple[str, ...]) -> dict[str, Any]:
        return {key: self.decode(item, kind, (*path, key)) for key, item in value.items()}

    def _leaf(self, value: Any, kind: Any, path: tuple[str, ...]) -> Any:
        text = isinstance(value, _FromText)
        plain = _plain(value)
        try:
            return msgspec.convert(plain, kind, strict=not text, dec_hook=_decode_secret)
        except msgspec.ValidationError as error:
            message, _, inner = str(error).partition(" - at `$")
            self.add((*path, *([inner.rstrip("`").lstrip(".")] if inner else ())), message)
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, _FromText):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


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
    if not path:
        return source
    *tables, key = path
    return f"{source}: [{'.'.join(tables)}] {key}" if tables else f"{source}: {key}"


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(key, fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(fields))})"
