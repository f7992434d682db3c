"""What is done to the gateway itself, and by whom: told to the auditors that plugins bring, each act once.

An act is a request to a route that needs the role `admin`, a command that changes something, or a reload. Without an
auditor acts that change something are messages of the logger `headrace.audit`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

import click
import msgspec

from .errors import GatewayError, HeadraceError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from .exchange import Principal
    from .gateway import Gateway, Handler, Route

logger = logging.getLogger("headrace.audit")

LOOKS = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that change nothing."""

ABOUT = "headrace.audit"
"""Under which a request's scope, or a command's `meta`, keeps what it is about."""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done, or tried, and how it ended. There is no secret in it but by somebody's mistake: text
    that came from outside is as it came."""

    action: str
    """What: `POST /admin/keys/{id}/rotate`, `keys revoke`, `reload`."""
    about: str = ""
    """What it was done to: a path, a key's id, a file."""
    by: Literal["api", "command", "process"]
    """Whether somebody asked over HTTP, ran a command, or the process was sent a signal or saw its file change."""
    id: str = ""
    """Who: a principal's id; of a command, the name that the operating system knows its user by."""
    name: str = ""
    """Who, as the operator named them; of a command, whom `sudo` was used by."""
    client: str = ""
    """Where from: the address of who asked over HTTP, or from where the user of a command is logged in."""
    result: Literal["done", "refused", "failed"]
    """Refused: it was not allowed, or cannot be done so. Failed: it should have been possible."""
    status: int | None = None
    """Of the answer over HTTP; of a command its exit status."""
    message: str = ""
    """Why, if it was not done."""
    request_id: str | None = None
    changes: bool = True
    """Whether it is meant to change something."""


class Auditor(Protocol):
    """Keeps acts. A plugin appends its own to `gateway.auditors` when it is made."""

    reads: bool
    """Whether it wants to know of acts that change nothing."""

    def note(self, act: Act) -> None:
        """Keep an act, at once: it may be called in any thread, and for a command while the gateway does not run."""
        ...


def record(gateway: Gateway | None, act: Act) -> None:
    """Tell every auditor. What goes wrong with one is logged: the act is done by now."""
    auditors = gateway.auditors if gateway is not None else ()
    if not auditors and act.changes:
        said = (act.by, act.id or "-", act.action, act.about, act.result, act.message)
        logger.info("%s, %s: %s %s: %s %s", *said)
    for auditor in auditors:
        try:
            if act.changes or auditor.reads:
                auditor.note(act)
        except Exception as error:
            logger.error("the auditor %s failed: %s: %s", type(auditor).__qualname__, type(error).__name__, error)


async def record_in_thread(gateway: Gateway, act: Act) -> None:
    """`record`, without the event loop waiting for a disk. Goes on to its end even if the caller is cancelled."""
    import asyncio

    await asyncio.shield(asyncio.to_thread(record, gateway, act))


# --- routes ---


def about(of: Request | click.Context, what: str) -> None:
    """Say what an admin's request, or a command, is about, where its path or its argument does not: the id of what it
    has created, for instance."""
    (of.meta if isinstance(of, click.Context) else of.scope)[ABOUT] = what


def audited_route(route: Route, gateway: Gateway, handler: Handler) -> Handler:
    """The handler of a route that needs the role `admin`, whose requests are told to the auditors.

    Requests of callers whom nobody knows are not: they have done nothing, and there may be any number of them.
    """

    async def audited(request: Request) -> Response:
        try:
            response = await handler(request)
        except BaseException as error:
            status = error.status if isinstance(error, GatewayError) else getattr(error, "status_code", 500)
            message = error.message if isinstance(error, GatewayError) else type(error).__name__
            await _told(request, status, message)
            raise
        await _told(request, response.status_code, "")
        return response

    async def _told(request: Request, status: int, message: str) -> None:
        principal: Principal | None = getattr(request.state, "principal", None)
        if principal is not None and (request.method not in LOOKS or any(each.reads for each in gateway.auditors)):
            await record_in_thread(gateway, _act_of(request, route.path, principal, status, message))

    return audited


def _act_of(request: Request, path: str, principal: Principal, status: int, message: str) -> Act:
    from .exchange import client_address

    return Act(
        action=f"{request.method} {path}",
        about=request.scope.get(ABOUT) or request.scope["path"],
        by="api",
        id=principal.id,
        name=principal.name,
        client=client_address(request.scope),
        result="done" if status < 400 else "refused" if status < 500 else "failed",
        status=status,
        message=message,
        request_id=request.scope["headrace.id"],
        changes=request.method not in LOOKS,
    )


# --- commands ---


@contextmanager
def noted(context: click.Context, what: str = "") -> Iterator[None]:
    """Around what a command changes: tells the auditors of it, and how it ended.

    Args:
        what: what it is about, unless `about` says it; without either it is the configuration file.
    """
    status, message = 0, ""
    try:
        yield
    except click.exceptions.Exit as error:
        status = error.exit_code
        raise
    except (click.ClickException, HeadraceError) as error:
        status, message = getattr(error, "exit_code", 1), getattr(error, "message", str(error))
        raise
    except BaseException as error:
        status, message = 1, type(error).__name__
        raise
    finally:
        _note_command(context, what, status, message)


def _note_command(context: click.Context, what: str, status: int, message: str) -> None:
    from .cli import config_path, gateway_of

    try:
        gateway, source = gateway_of(context), str(config_path(context))
    except click.ClickException:  # a configuration that is wrong: then there is nobody to tell
        gateway, source = None, ""
    act = Act(
        action=" ".join(_words(context)),
        about=context.meta.get(ABOUT) or what or source,
        by="command",
        id=operator(),
        name=os.environ.get("SUDO_USER", ""),
        client=next(iter(os.environ.get("SSH_CONNECTION", "").split()), "local"),
        result="failed" if status else "done",
        status=status,
        message=message,
    )
    record(gateway, act)


def _words(context: click.Context) -> list[str]:
    """A command's name as it is typed, without the program's."""
    above = context.parent
    return [*_words(above), context.info_name or ""] if above is not None else []


def operator() -> str:
    """Who runs this process, as the operating system knows them."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return f"uid {os.getuid()}"


__all__ = ["Act", "Auditor", "about", "audited_route", "noted", "operator", "record", "record_in_thread"]
