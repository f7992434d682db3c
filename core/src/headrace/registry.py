"""From configuration to live plugins: load, make, check against the hookspecs, order, freeze."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol

import msgspec
import pluggy

from . import discovery, hookspecs
from .config import Config
from .errors import ConfigError, PluginError, Problem
from .kinds import PROJECT, Kind
from .references import Missing
from .settings import SWITCHES, decode_plugin
from .timelimit import time_limit

IMPORT_SECONDS = 30.0
"""How long an import may take where no configuration says otherwise."""


class Plugin(Protocol):
    """What an entry point names: a class made with its checked configuration and the gateway. No I/O in there."""

    Config: type[Any]

    def __init__(self, config: Any, gateway: Any) -> None: ...


class Hook(msgspec.Struct, frozen=True):
    """One hook, compiled: who implements it, in the order of the calls."""

    name: str
    kind: Kind
    is_async: bool
    parameters: tuple[str, ...]
    calls: tuple[tuple[str, Callable[..., Any]], ...] = ()


def specifications() -> dict[str, Hook]:
    """Every hook in the order of `hookspecs.py`, with nobody implementing it yet."""
    return {
        name: Hook(name, function.headrace_kind, function.headrace_async, tuple(inspect.signature(function).parameters))
        for name, function in vars(hookspecs).items()
        if hasattr(function, "headrace_kind")
    }


def load_plugins(
    config: Config, gateway: Any, source: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Problem]]:
    """Import and make every enabled plugin, in file order. `given` classes are used in place of entry points.

    Returns:
        The plugins that could be made, and what is wrong with the others.

    Raises:
        ConfigError: distributions claim the same name.
    """
    available = discovery.installed()
    plugins: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, table in config.plugins.items():
        try:
            if is_enabled(name, table, source):
                limit = config.server.startup_timeout
                plugin_class = given.get(name) or _find(name, available, limit)
                plugins[name] = _make(name, plugin_class, table, gateway, source, limit)
        except ConfigError as error:
            problems.extend(error.problems)
        except PluginError as error:
            problems.append(Problem(f"{source}: [plugins.{name}]", str(error)))
    return plugins, problems


def plugin_class(name: str) -> Any:
    """The class of an installed plugin, imported. Raises PluginError."""
    return _find(name, discovery.installed(), IMPORT_SECONDS)


def compile_hooks(
    plugins: Mapping[str, Any],
    order: Mapping[str, Sequence[str]],
    source: str,
    *,
    configured: Iterable[str] = (),
    earlier: Sequence[Problem] = (),
) -> dict[str, Hook]:
    """Check every implementation and freeze the order of the calls.

    `configured` names plugins that `[order]` may mention though they could not be made; `earlier` problems are raised
    along with what is found here.

    Raises:
        ConfigError: every wrong signature, colour, misspelt hook and unknown name in `[order]`, at once.
    """
    manager = _Manager(PROJECT)
    manager.add_hookspecs(hookspecs)
    hooks = specifications()
    problems = [*earlier, *_check_order(order, hooks, {*plugins, *configured}, source)]
    for name, plugin in plugins.items():
        for message in _check_plugin(name, plugin, hooks, manager):
            problems.append(Problem(f"{source}: [plugins.{name}]", message))
    compiled = {name: _compiled(hook, manager, plugins, order.get(name, ())) for name, hook in hooks.items()}
    problems += _check_implemented(order, compiled, plugins, source)
    if problems:
        raise ConfigError(problems)
    return compiled


HookWrapper = Callable[[str, Hook, Callable[..., Any]], Callable[..., Any]]
"""Given a plugin's name, the hook, and the function: what is called in its place, with the same arguments."""
PER_REQUEST = frozenset(
    (
        *("authenticate", "authorize", "transform_request", "admit", "open_tap", "cache_lookup", "arrange"),
        *("prepare_attempt", "on_attempt", "transform_reply", "wrap_stream", "handle_error", "on_complete"),
    )
)


def wrapped(hooks: dict[str, Hook], wrapper: HookWrapper | None) -> dict[str, Hook]:
    """The hooks of requests with the wrapper around each call; without one, as they are."""
    if wrapper is None:
        return hooks
    return {
        name: msgspec.structs.replace(
            hook, calls=tuple((plugin, wrapper(plugin, hook, call)) for plugin, call in hook.calls)
        )
        if name in PER_REQUEST
        else hook
        for name, hook in hooks.items()
    }


def is_enabled(name: str, table: Mapping[str, Any], source: str) -> bool:
    """Whether a plugin's table parks it with `enabled = false`. Raises ConfigError if it says neither."""
    enabled = table.get("enabled", True)
    if isinstance(enabled, Missing):
        raise ConfigError([Problem(f"{source}: [plugins.{name}] enabled", enabled.message)])
    if isinstance(enabled, str) and enabled.strip().lower() in SWITCHES:
        return SWITCHES[enabled.strip().lower()]
    if not isinstance(enabled, bool):
        raise ConfigError([Problem(f"{source}: [plugins.{name}] enabled", "must be true or false")])
    return enabled


def _find(name: str, available: Mapping[str, discovery.Found], limit: float) -> Any:
    """The class of an installed plugin, imported. Raises PluginError."""
    found = available.get(name)
    if found is None:
        known = ", ".join(available) or "none"
        raise PluginError(name, f"is not installed{_closest(name, available)} (installed: {known})")
    found.check_version(metadata.version("headrace"))
    return _import(found, limit)


def _closest(name: str, available: Iterable[str]) -> str:
    import difflib

    if f"headrace-{name}" in _own_plugins():  # nobody else's package is advised: a typo might be its name
        return f": pip install headrace-{name}"
    close = difflib.get_close_matches(name, available, n=1)
    return f": did you mean {close[0]!r}?" if close else ": install the package that brings it"


def _own_plugins() -> set[str]:
    """The distributions of the extra `standard`."""
    return {requirement.partition(";")[0].strip() for requirement in metadata.requires("headrace") or ()}


def _make(name: str, plugin_class: Any, table: Mapping[str, Any], gateway: Any, source: str, limit: float) -> Any:
    decoded = decode_plugin(name, table, getattr(plugin_class, "Config", _NoConfig), source)
    with time_limit(name, "__init__", limit):
        try:
            return plugin_class(decoded, gateway)
        except (ConfigError, PluginError):
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(name, f"could not be made: {type(error).__name__}: {error}") from error


def _import(found: discovery.Found, limit: float) -> Any:
    module, _, attribute = found.value.partition(":")
    if not attribute:
        raise PluginError(found.name, f"{found.value} names no class: an entry point is MODULE:CLASS")
    with time_limit(found.name, "import", limit):
        try:
            value: Any = importlib.import_module(module)
            for part in attribute.split("."):
                value = getattr(value, part)
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(found.name, f"cannot be imported: {type(error).__name__}: {error}") from error
    if not inspect.isclass(value):
        raise PluginError(found.name, f"{found.value} is not a class: an entry point names the plugin's class")
    return value


class _NoConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration of a plugin that declares none: every key is unknown."""


def _check_order(
    order: Mapping[str, Sequence[str]], hooks: Mapping[str, Hook], plugins: Container[str], source: str
) -> Iterator[Problem]:
    for hook, names in order.items():
        if hook not in hooks:
            yield Problem(f"{source}: [order] {hook}", f"is not a hook (hooks: {', '.join(hooks)})")
        for name in names:
            if name not in plugins:
                yield Problem(f"{source}: [order] {hook}", f"the plugin {name!r} is not enabled")


def _check_implemented(
    order: Mapping[str, Sequence[str]], hooks: Mapping[str, Hook], plugins: Container[str], source: str
) -> Iterator[Problem]:
    for hook, names in order.items():
        implementers = {name for name, _ in hooks[hook].calls} if hook in hooks else set(names)
        for name in names:
            if name in plugins and name not in implementers:
                yield Problem(f"{source}: [order] {hook}", f"the plugin {name!r} does not implement this hook")


def _check_plugin(name: str, plugin: Any, hooks: Mapping[str, Hook], manager: pluggy.PluginManager) -> Iterator[str]:
    before = set(hooks)
    problems = []
    for attribute, method in _methods(plugin):
        marked = getattr(method, f"{PROJECT}_impl", None)
        if marked is None:
            if attribute in before and not attribute.startswith("_"):
                problems.append(f"has a method {attribute!r}, which is a hook, without @hookimpl: mark it or rename it")
            continue
        problems.extend(_check_implementation(attribute, method, marked, hooks))
    yield from problems
    if not problems:
        try:
            manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError, TypeError) as error:
            yield f"cannot be registered: {error}"


def _methods(plugin: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A plugin's methods. Its properties are left alone: reading one may do work that is not due yet."""
    for name in dir(plugin):
        if not isinstance(inspect.getattr_static(plugin, name), property) and callable(getattr(plugin, name)):
            yield name, getattr(plugin, name)


class _Manager(pluggy.PluginManager):
    """pluggy's manager reads every attribute of a plugin; this one leaves properties alone."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> pluggy.HookimplOpts | None:
        if isinstance(inspect.getattr_static(plugin, name), property):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def _check_implementation(
    name: str, method: Callable[..., Any], marked: Mapping[str, Any], hooks: Mapping[str, Hook]
) -> Iterator[str]:
    hook = hooks.get(name)
    if hook is None:
        import difflib

        close = difflib.get_close_matches(name, hooks, n=1)
        yield f"implements {name!r}, which is not a hook" + (f": did you mean {close[0]!r}?" if close else "")
        return
    if marked.get("wrapper") or marked.get("hookwrapper"):
        yield f"hook {name!r}: pluggy wrappers are not supported"
    if marked.get("tryfirst") or marked.get("trylast"):
        yield f"hook {name!r}: tryfirst and trylast have no effect: order is the configuration's, see [order]"
    if inspect.iscoroutinefunction(method) != hook.is_async:
        colour = "async def" if hook.is_async else "a plain def"
        yield f"hook {name!r}: must be {colour}"
    unknown = [each for each in inspect.signature(method).parameters if each not in hook.parameters]
    if unknown:
        yield (
            f"hook {name!r}: has the argument{'s' * (len(unknown) > 1)} {', '.join(unknown)}; "
            f"its signature is {name}({', '.join(hook.parameters)})"
        )


def _compiled(hook: Hook, manager: pluggy.PluginManager, plugins: Mapping[str, Any], first: Sequence[str]) -> Hook:
    implementations = {
        each.plugin_name: _uniform(each.function, hook.parameters)
        for each in getattr(manager.hook, hook.name).get_hookimpls()
    }
    ordered = [name for name in dict.fromkeys([*first, *plugins]) if name in implementations]
    return msgspec.structs.replace(hook, calls=tuple((name, implementations[name]) for name in ordered))


def _uniform(function: Callable[..., Any], parameters: tuple[str, ...]) -> Callable[..., Any]:
    """The function itself if it takes every argument, in order; else an adapter that passes those it takes."""
    taken = tuple(inspect.signature(function).parameters)
    if taken == parameters:
        return function
    positions = [parameters.index(name) for name in taken]
    return lambda *arguments: function(*[arguments[position] for position in positions])
