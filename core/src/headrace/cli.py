"""The command line. Commands import what they need when they run: `headrace --help` must stay quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import ConfigError, GatewayError, HeadraceError

if TYPE_CHECKING:
    from .gateway import Gateway

ENVIRONMENT = "HEADRACE_CONFIG"
PLACES = ("headrace.toml", "conf/headrace.toml", "/etc/headrace/headrace.toml")
"""Where the configuration is looked for when neither --config nor HEADRACE_CONFIG names it."""


def gateway_of(context: click.Context) -> Gateway:
    """The gateway of the configuration that this command runs with; plugins made, nothing started.

    Raises:
        click.ClickException: there is no configuration, or it is wrong: every problem in its text.
    """
    try:
        return _bare_gateway(context).assemble()
    except HeadraceError as error:
        raise Refused(error) from error


class Refused(click.ClickException):
    """Prints our errors: one problem a line, no traceback."""

    def __init__(self, error: HeadraceError) -> None:
        if isinstance(error, ConfigError):
            count = len(error.problems)
            lines = "".join(f"\n  {problem}" for problem in error.problems)
            super().__init__(f"the configuration has {count} problem{'s' * (count != 1)}:{lines}")
        else:
            super().__init__(str(error))


def config_path(context: click.Context) -> Path:
    """The configuration file: --config, HEADRACE_CONFIG, or the first of the usual places.

    Raises:
        click.ClickException: there is none.
    """
    given: str | None = context.find_root().params.get("config") or os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    for place in PLACES:
        if Path(place).is_file():
            return Path(place)
    raise click.ClickException(
        f"no configuration found: name it with --config FILE or HEADRACE_CONFIG (looked for {', '.join(PLACES)})"
    )


def _bare_gateway(context: click.Context) -> Gateway:
    from .gateway import Gateway

    root = context.find_root()
    if root.obj is None:
        path = config_path(context)
        root.obj = Gateway.from_file(path)
    gateway: Gateway = root.obj
    return gateway


class Commands(click.Group):
    """Core's commands, and those of the enabled plugins. `--config` may stand anywhere."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        return super().main(_config_first(sys.argv[1:] if args is None else args), *rest, **options)

    def list_commands(self, context: click.Context) -> list[str]:
        try:
            self._add_plugin_commands(context)
        except HeadraceError:
            context.meta["headrace.incomplete"] = f"{config_path(context)} has problems: see `headrace config check`."
        except click.ClickException:
            context.meta["headrace.incomplete"] = "give --config to see them."
        return sorted(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.commands:
            try:
                self._add_plugin_commands(context)
            except HeadraceError as error:
                raise Refused(error) from error
            except click.ClickException as error:
                raise click.UsageError(f"no such command {name!r}; {error.message}", context) from error
            self._say_if_left_out(context, name)
        return self.commands.get(name)

    def _say_if_left_out(self, context: click.Context, name: str) -> None:
        """Of a plugin that is there and not used. Raises click.UsageError."""
        from .discovery import installed

        if name not in self.commands and name in installed():
            where = config_path(context)
            raise click.UsageError(f"no such command {name!r}: {where} does not switch the plugin on: [plugins.{name}]")

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        why = context.meta.get("headrace.incomplete")
        if why:
            formatter.write_paragraph()
            formatter.write_text(f"Plugins add commands of their own: {why}")

    def _add_plugin_commands(self, context: click.Context) -> None:
        if not context.find_root().meta.get("headrace.commands"):
            context.find_root().meta["headrace.commands"] = True
            _bare_gateway(context).hooks.setup("register_commands", self)


def _config_first(arguments: Sequence[str]) -> list[str]:
    rest, chosen = list(arguments), []
    for position, argument in enumerate(rest):
        if argument == "--":
            break
        if argument in ("--config", "-c") and position + 1 < len(rest):
            chosen = ["--config", rest[position + 1]]
            del rest[position : position + 2]
            break
        if argument.startswith("--config="):
            chosen = [argument]
            del rest[position]
            break
    return [*chosen, *rest]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace", message="headrace %(version)s")
@click.option(
    "-c", "--config", envvar=ENVIRONMENT, is_eager=True, metavar="FILE", help="The configuration file (TOML)."
)
def main(config: str | None) -> None:
    """Headrace: an OpenAI-compatible gateway for self-hosted LLMs.

    Python decides, nginx streams.
    """


@main.command()
@click.option("--socket-only", is_flag=True, help="Listen on the unix socket for nginx alone.")
@click.option(
    "--worker", type=click.IntRange(min=0), default=0, help="Which of server.workers this is, from 0; nginx knows each."
)
@click.pass_context
def serve(context: click.Context, socket_only: bool, worker: int) -> None:
    """Run the core alone, without nginx and without engines."""
    import signal

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves there is nothing to reload
    from . import server
    from .sockets import url_of

    _log_to_stderr()
    gateway = gateway_of(context)
    workers = gateway.config.server.workers
    if worker >= workers:
        raise click.BadParameter(f"there are {workers} (server.workers)", context, param_hint="--worker")
    gateway.worker, gateway.behind_front = worker, socket_only
    if not socket_only:
        gateway.workers = 1
    with _plain_errors(), server.listening(gateway, tcp=not socket_only) as sockets:

        def say() -> None:
            if socket_only:
                return
            click.echo(f"headrace: listening on {url_of(sockets[-1])}", err=True)
            if any(model.delivery == "offload" for model in gateway.models):
                click.echo("headrace: warning: what comes here is delivered by the core: offload needs nginx", err=True)

        server.run(gateway, sockets, say, config_path(context))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the READY line as JSON.")
@click.pass_context
def up(context: click.Context, as_json: bool) -> None:
    """Run everything the configuration names: engines, core and nginx.

    Prints one line on stdout once everything answers: READY url=… key=… model=…
    SIGINT and SIGTERM stop it all; SIGHUP reloads the configuration.
    """
    import asyncio

    from . import up as everything

    gateway = gateway_of(context)
    with _plain_errors():
        asyncio.run(everything.up(gateway, config_path(context), as_json=as_json))


@main.command()
@click.pass_context
def reload(context: click.Context) -> None:
    """Have the running gateway take over its configuration: new requests see it, those that are open end as they began.

    A configuration that cannot be used is refused, and all goes on as before. What needs a restart is said.
    """
    import asyncio

    from .audit import noted
    from .reload import reload as have_reloaded

    with _plain_errors(), noted(context):
        asyncio.run(have_reloaded(config_path(context), click.echo))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the plugins: installed, enabled, parked, broken."""
    from .reports import plugin_report
    from .tables import show

    with _plain_errors():
        show(plugin_report(_path_or_none(context)), as_json, title="Plugins")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def hooks(context: click.Context, as_json: bool) -> None:
    """List every hook, its kind, and who implements it in which order."""
    from .reports import hook_report
    from .tables import show

    show(hook_report(gateway_of(context)), as_json, title="Hooks")


@main.group()
def config() -> None:
    """Check, show and describe configurations."""


@config.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def check(context: click.Context, file: Path | None, as_json: bool) -> None:
    """Check a configuration and its plugins; report every problem at once. Exit status 1 if there are any."""
    from .reports import check_report

    path = file or config_path(context)
    problems, oddities = check_report(path)
    if as_json:
        _print_json({"file": str(path), "ok": not problems, "problems": problems, "warnings": oddities})
    else:
        for problem in problems:
            click.echo(f"{problem['where']}: {problem['message']}", err=True)
        for oddity in oddities:
            click.echo(f"{path}: warning: {oddity}", err=True)
        click.echo(f"{path}: {'ok' if not problems else f'{len(problems)} problem(s)'}")
    context.exit(1 if problems else 0)


@config.command("show")
@click.pass_context
def show_config(context: click.Context) -> None:
    """Print the configuration as it was understood, as JSON, with every secret masked."""
    from .reports import config_report

    _print_json(config_report(gateway_of(context)))


@config.command()
@click.pass_context
def schema(context: click.Context) -> None:
    """Print the JSON Schema of the configuration, with the tables of the enabled plugins if there is one."""
    from .reports import schema_report

    with _plain_errors():
        _print_json(schema_report(_path_or_none(context)))


@main.command()
@click.argument("model")
@click.option("--key", envvar="HEADRACE_KEY", help="The API key to ask with (or HEADRACE_KEY).")
@click.option("--endpoint", default="chat", show_default=True, help="chat, completions, embeddings, …")
@click.option("--stream", is_flag=True, help="As a streamed request.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def explain(context: click.Context, model: str, key: str | None, endpoint: str, stream: bool, as_json: bool) -> None:
    """Say what would happen to a request for MODEL: who asks, which targets in order, which plugins, which delivery."""
    import asyncio

    from .explain import explain as decide
    from .reports import show_explanation

    gateway = gateway_of(context)

    async def report() -> dict[str, Any]:
        async with gateway.running(looking=True):
            return await decide(gateway, model=model, key=key, endpoint=endpoint, stream=stream)

    with _plain_errors():
        found = asyncio.run(report())
    if as_json:
        _print_json(found)
    else:
        show_explanation(found)
        if not key and found.get("error", {}).get("status") == 401:
            click.echo("give a key to ask with: --key KEY, or HEADRACE_KEY", err=True)
    context.exit(1 if "error" in found else 0)


@main.command()
@click.argument("key", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def whoami(context: click.Context, key: str | None, as_json: bool) -> None:
    """Say who KEY belongs to, what it may do, and how its limits stand.

    Without KEY it is HEADRACE_KEY, or read from the terminal or standard input: other users of the machine can see
    what stands on a command line.
    """
    import asyncio

    from .whoami import lines_of
    from .whoami import whoami as ask

    gateway = gateway_of(context)
    shown = key or os.environ.get("HEADRACE_KEY") or _asked_for("Key")

    async def report() -> dict[str, Any]:
        async with gateway.running(looking=True):
            return await ask(gateway, shown)

    with _plain_errors():
        found = asyncio.run(report())
    if as_json:
        _print_json(found)
    else:
        click.echo("\n".join(lines_of(found)))


def _asked_for(what: str) -> str:
    """A secret, read without showing it."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True))
    return sys.stdin.readline().strip()


@main.command("new-plugin")
@click.argument("name")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Where to put it.")
def new_plugin(name: str, into: Path) -> None:
    """Write the skeleton of a plugin: package, entry point, one hook, its test, README."""
    from .scaffold import render

    with _plain_errors():
        folder = render(name, into)
    click.echo(f"wrote {folder}")
    click.echo(f"next: pip install -e '{folder}[test]', then add [plugins.{name}] to the configuration", err=True)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def version(as_json: bool) -> None:
    """Print the versions of Headrace, Python and what they stand on."""
    from .reports import version_report

    report = version_report()
    if as_json:
        _print_json(report)
    else:
        for name, value in report.items():
            click.echo(f"{name} {value}")


class _plain_errors:
    """Prints Headrace's own errors as one clear message and leaves with exit status 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, GatewayError):
            raise click.ClickException(error.message) from error
        if isinstance(error, HeadraceError):
            raise Refused(error) from error
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from error


def _path_or_none(context: click.Context) -> Path | None:
    try:
        return config_path(context)
    except click.ClickException:
        return None


def _print_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _log_to_stderr() -> None:
    """Plain log lines, until a plugin such as `logs` brings its own."""
    import logging

    level = os.environ.get("HEADRACE_LOG_LEVEL", "WARNING").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
