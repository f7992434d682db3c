"""`reference/cli.md`, from click: core's commands and those of every plugin in this repository."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator

import click

from headrace.cli import main
from headrace.gateway import Gateway
from headrace.registry import plugin_class
from headrace.settings import parse

from .source import HEADER, cell, workspace_plugins

INTRODUCTION = """\
# Command line

`headrace COMMAND --help` says the same as this page. `--config FILE` (`-c`, or the environment variable
`HEADRACE_CONFIG`) may stand before or after the command; without it the
[usual places](configuration.md#configuration) are searched. Commands that plugins add exist while the plugin's table
stands in that configuration.

What a command is asked for goes to standard output, everything else to standard error. Exit status 0 is success, 1 a
problem that the message explains, 2 a wrong call.

While no plugin such as `logs` brings its own logging, `headrace serve` writes plain lines to standard error;
`HEADRACE_LOG_LEVEL` (default `WARNING`) sets the least severe.
"""


def page() -> str:
    """The whole page."""
    group, owners = commands()
    parts = [HEADER, INTRODUCTION, "\n"]
    for name in sorted(group.commands):
        parts.extend(_command(group.commands[name], f"headrace {name}", owners.get(name)))
    return "".join(parts)


@functools.cache
def commands() -> tuple[click.Group, dict[str, str]]:
    """`headrace` with the commands of every plugin here, and which plugin brings which."""
    group = click.Group("headrace", params=main.params, help=main.help, commands=dict(main.commands))
    named = [name for name in workspace_plugins() if hasattr(plugin_class(name), "register_commands")]
    gateway = Gateway(parse({"plugins": {name: {} for name in named}})).assemble()
    owners: dict[str, str] = {}
    for plugin, register in gateway.hooks.compiled["register_commands"].calls:
        before = set(group.commands)
        register(group)
        owners |= dict.fromkeys(set(group.commands) - before, plugin)
    return group, owners


def _command(command: click.Command, name: str, owner: str | None) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    by = f"*From the plugin `{owner}`.*\n\n" if owner else ""
    usage = f"    {name} {' '.join(command.collect_usage_pieces(context))}\n"
    yield f"## {name}\n\n{by}{_help(command)}\n\n{usage}{_parameters(command)}\n"
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from _command(command.commands[each], f"{name} {each}", None)


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").strip()


def _parameters(command: click.Command) -> str:
    rows = [_row(each) for each in command.params if isinstance(each, click.Option)]
    return "\n| option | |\n|---|---|\n" + "".join(rows) if rows else ""


def _row(option: click.Option) -> str:
    value = f" {_metavar(option)}" if not option.is_flag else ""
    names = ", ".join(f"`{name}{value}`" for name in sorted(option.opts, key=len, reverse=True))
    return f"| {names} | {cell(' '.join(filter(None, (option.help, _default(option), _envvar(option)))))} |\n"


def _metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices)).replace("|", "\\|")
    return "PATH" if isinstance(option.type, click.Path) else option.type.name.upper()


def _default(option: click.Option) -> str:
    return f"Default: `{option.default}`." if option.show_default else ""


def _envvar(option: click.Option) -> str:
    return f"Environment: `{option.envvar}`." if option.envvar else ""
