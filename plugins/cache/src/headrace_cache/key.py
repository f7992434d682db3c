"""The key of a request: the same for requests that must have the same answer, and for no others.

A body is read as JSON and written anew in one form: members in the order of their names, no spaces, one way to write
each text. Numbers stay what they are: 1, 1.0 and true are three. What two readers might read differently (a member that
stands there twice, a number beyond all bounds, minus zero) has no key, and is not cached.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from headrace.exchange import ANONYMOUS, Exchange, Principal
from headrace.models import Model

from . import crossing
from .config import Partition

FORMAT = "2"
"""Another one when anything here changes: servers outlive us."""
HEADERS = (b"accept", b"openai-beta", b"anthropic-version", b"anthropic-beta")
"""The client's headers that backends get, but for those that say who asks or trace it."""
IGNORING = frozenset(("chat", "completions", "embeddings"))
"""Endpoints whose answers do not say again what was asked."""
FORM_FIELDS = ("stream", "stream_options")
"""They say in which form the answer is to come. Instead of `stream` what the core makes of it counts: false, null and
nothing at all are the same."""
WHOLE: list[Any] = [False]
STREAM: list[Any] = [True, {"include_usage": True}]
OPTIONS: list[list[Any]] = [[], [None], [{}], *([{"include_usage": each}] for each in (True, False, None))]
"""`stream_options` of streams that tell nothing but what a whole answer tells."""
_MINUS_ZERO = re.compile(r"-0(?![\d.])")


class Keys(NamedTuple):
    """Of one request."""

    own: str
    """Of its answer."""
    other: str | None
    """Of the same answer in the other form, whole or streamed; None: there is none."""


class Unclear(ValueError):
    """A body that two readers might read differently."""


def read(body: bytes) -> dict[str, Any]:
    """A body's fields. Raises Unclear."""
    try:
        text = body.decode()
        if "-0" in text and _MINUS_ZERO.search(text) is not None:
            fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_integer)
        else:
            fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Unclear(str(error)) from error
    if not isinstance(fields, dict):
        raise Unclear("no object")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unclear("a member stands there twice")
    return found


def _refuse(word: str) -> None:
    raise Unclear(word)


def _integer(text: str) -> int:
    if text == "-0":
        raise Unclear(text)
    return int(text)


def tenant_of(principal: Principal | None, partition: Partition) -> tuple[str, str]:
    """Who shares answers with this caller: everybody with the same."""
    if partition == "shared":
        return ("shared", "")
    if principal is None or principal is ANONYMOUS:
        return ("nobody", "")
    if partition == "team" and principal.team:
        return ("team", principal.team)
    return ("key", principal.id)


def served_by(models: Iterable[Model]) -> list[list[str]]:
    """What answers for a model and those it falls back on: which kind of backend, and under which name."""
    return [list(each) for each in sorted({(t.provider, t.model or "") for model in models for t in model.targets})]


def keys_of(
    exchange: Exchange,
    fields: dict[str, Any],
    tenant: tuple[str, str],
    served: list[list[str]],
    ignore: Iterable[str] = (),
) -> Keys:
    """The keys, in hexadecimal digits. `fields` as `read` gives them. Raises Unclear."""
    name = exchange.endpoint.name
    left_out = {*FORM_FIELDS, *(ignore if name in IGNORING else ())}
    what = [
        FORMAT,
        name,
        tenant,
        exchange.model.name if exchange.model is not None else None,
        served,
        exchange.answer_limit,  # what a backend is told of the answer's length if the client says nothing
        [exchange.header(each) for each in HEADERS],
        {field: value for field, value in fields.items() if field not in left_out},
    ]
    form = [exchange.streaming, *([fields["stream_options"]] if "stream_options" in fields else ())]
    digest = hashlib.sha256(_written(what))
    other = _other(form) if name in crossing.ENDPOINTS else None
    return Keys(_digits(digest, form), _digits(digest, other) if other is not None else None)


def _other(form: list[Any]) -> list[Any] | None:
    """The other form in which the same may be asked for. A whole answer tells of its tokens: so must its stream."""
    if form == WHOLE:
        return STREAM
    streaming, *options = form
    return WHOLE if streaming and options in OPTIONS else None


def _digits(digest: Any, form: list[Any]) -> str:
    digest = digest.copy()
    digest.update(_written(form))
    return str(digest.hexdigest())


def _written(what: Any) -> bytes:
    """JSON in its one form. Raises Unclear."""
    try:
        return json.dumps(what, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError) as error:  # 1e999 is infinite, and so is 1e998
        raise Unclear(str(error)) from error
