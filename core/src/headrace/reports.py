"""What the commands that look at things show: as rows for people, as JSON for scripts."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import msgspec

from . import discovery
from .config import Config, Secret
from .errors import ConfigError, HeadraceError, PluginError
from .gateway import Gateway
from .registry import is_enabled, plugin_class
from .settings import load
from .tables import Rows


def plugin_report(path: Path | None) -> Rows:
    """Every installed or configured plugin with its state. Raises PluginError for rival distributions, ConfigError."""
    installed = discovery.installed()
    tables = load(path).plugins if path else {}
    names = [*tables, *(name for name in installed if name not in tables)]
    return [_plugin(name, installed.get(name), tables, path) for name in names]


def _plugin(
    name: str, found: discovery.Found | None, tables: Mapping[str, Mapping[str, Any]], path: Path | None
) -> dict[str, Any]:
    row = {"plugin": name, "state": "disabled", "distribution": "", "version": "", "reason": ""}
    if found:
        row |= {"distribution": found.distribution, "version": found.version}
    if name not in tables:
        return row
    document = {"plugins": {name: dict(tables[name])}}
    try:
        if not is_enabled(name, tables[name], str(path)):
            return row | {"state": "parked", "reason": "enabled = false"}
        Gateway(msgspec.convert(document, Config), str(path))
    except HeadraceError as error:
        return row | {"state": "broken", "reason": str(error)}
    return row | {"state": "enabled"}


def hook_report(gateway: Gateway) -> Rows:
    """Every hook in the order of a request."""
    return [
        {
            "hook": hook.name,
            "kind": hook.kind.value,
            "async": hook.is_async,
            "plugins": list(gateway.hooks.implementers(hook.name)),
        }
        for hook in gateway.hooks.compiled.values()
    ]


def check_report(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Every problem of a configuration and its plugins, and what is odd about one that has none."""
    try:
        return [], Gateway.from_file(path).assemble().oddities()
    except ConfigError as error:
        return [{"where": problem.where, "message": problem.message} for problem in error.problems], []
    except PluginError as error:
        return [{"where": f"{path}: [plugins.{error.plugin}]", "message": str(error)}], []


def config_report(gateway: Gateway) -> Any:
    """The configuration as plain values, defaults filled in, secrets masked: plugins' tables by their own Structs."""
    shown = msgspec.to_builtins(gateway.config, enc_hook=_mask)
    shown["plugins"] = {
        name: _plugin_table(gateway.plugins[name], table) if name in gateway.plugins else {"enabled": False}
        for name, table in gateway.config.plugins.items()
    }
    return shown


def _plugin_table(plugin: Any, table: Mapping[str, Any]) -> Any:
    from .settings import decode_plugin

    struct = getattr(type(plugin), "Config", None)
    return msgspec.to_builtins(decode_plugin("", table, struct, ""), enc_hook=_mask) if struct else {}


def _mask(value: Any) -> Any:
    if isinstance(value, Secret):
        return "***" if value else ""
    return str(value)


def schema_report(path: Path | None) -> Any:
    """The JSON Schema of the file: core's Structs, and those of the configured plugins."""
    (reference,), components = msgspec.json.schema_components(
        [Config], schema_hook=_secret_schema, ref_template="#/$defs/{name}"
    )
    plugins: dict[str, Any] = {}
    for name, table in load(path).plugins.items() if path else ():
        struct = getattr(plugin_class(name), "Config", None) if is_enabled(name, table, str(path)) else None
        if struct is not None:
            (plugins[name],), more = msgspec.json.schema_components(
                [struct], schema_hook=_secret_schema, ref_template=f"#/$defs/{name}.{{name}}"
            )
            components |= {f"{name}.{struct_name}": schema for struct_name, schema in more.items()}
    components["Config"]["properties"]["plugins"] = {"type": "object", "properties": plugins}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **reference, "$defs": components}


def _secret_schema(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "writeOnly": True}
    raise NotImplementedError(kind)


def version_report() -> dict[str, str]:
    """Headrace, Python, the system, and the libraries on the hot path."""
    libraries = ("starlette", "uvicorn", "aiohttp", "pluggy", "msgspec")
    return {
        "headrace": metadata.version("headrace"),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: metadata.version(name) for name in libraries},
    }


def show_explanation(report: Mapping[str, Any]) -> None:
    """The report of `explain` in words."""
    if "principal" in report:
        principal = report["principal"]
        click.echo(f"asked by    {principal['name'] or principal['id']} ({principal['id']})")
    click.echo(f"endpoint    {report['endpoint']}{' (streamed)' if report['stream'] else ''}")
    click.echo(f"model       {report['model']}")
    for number, target in enumerate(report.get("targets", ()), 1):
        socket = f" over {target['socket']}" if target.get("socket") else ""
        where = target.get("skipped") or f"{target['url']}{socket} as {target['model']!r}"
        click.echo(f"target {number}    {target['name']} ({target['provider']}): {where}")
        odd = target["condition"] if target["condition"] in ("down", "starting") else ""
        if words := ", ".join(filter(None, (odd, target.get("why", "")))):
            click.echo(f"            {words}")
    if "delivery" in report:
        click.echo(f"delivery    {report['delivery']['name']}: {report['delivery']['reason']}")
    for hook, names in report["plugins"].items():
        click.echo(f"hook        {hook}: {', '.join(names)}")
    if "error" in report:
        click.echo(f"answer      {report['error']['status']} {report['error']['code']}: {report['error']['message']}")
