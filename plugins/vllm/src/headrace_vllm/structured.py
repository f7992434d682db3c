"""`guided_json` and its like, which vLLM ignores by now, in the words that it knows instead.

https://docs.vllm.ai/en/latest/features/structured_outputs/: `structured_outputs` with one of `json`, `regex`, `choice`
and `grammar`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from headrace.errors import InvalidRequest

KINDS: Mapping[str, tuple[str, Any]] = {
    "guided_json": ("json", str | dict[str, Any]),
    "guided_regex": ("regex", str),
    "guided_choice": ("choice", Annotated[list[str], msgspec.Meta(min_length=1)]),
    "guided_grammar": ("grammar", str),
}
"""What each has become, and what it must be."""
GONE = {
    "guided_decoding_backend": "vLLM chooses it when it is started, by --structured-outputs-config",
    "guided_whitespace_pattern": "vLLM reads none any more",
}
"""What has become nothing."""
NAMES = frozenset((*KINDS, *GONE))
HARMLESS = {"guided_decoding_backend": "auto"}
FREE = frozenset(("text",))
"""Types of `response_format` that ask for nothing."""

Fields = Mapping[str, msgspec.Raw]


class _Format(msgspec.Struct):
    type: str = ""


def changes(fields: Fields) -> dict[str, Any]:
    """What to set in a body and, with None, what to remove.

    Raises:
        InvalidRequest: what is asked for cannot be said any more, or not all at once.
    """
    named = [name for name in (*KINDS, *GONE) if name in fields]
    given = [name for name in named if not _is_null(fields[name])]
    kinds = [name for name in given if name in KINDS]
    for name in given:
        if name in GONE and _decoded(fields, name, Any) != HARMLESS.get(name):
            raise _refused(name, f"is not there any more: {GONE[name]}. Leave it out.")
    if len(kinds) > 1:
        raise _refused(kinds[1], f"cannot be had beside {kinds[0]!r}: an answer follows one of them.")
    made: dict[str, Any] = dict.fromkeys(named)
    if not kinds:
        return made
    (name,) = kinds
    _check_format(fields, name)
    constraint = {KINDS[name][0]: _decoded(fields, name, KINDS[name][1])}
    said = fields.get("structured_outputs", msgspec.Raw(b"null"))
    if _is_null(said):
        made["structured_outputs"] = {KINDS[name][0]: fields[name]}  # as its bytes stand: an order may matter
    elif _decoded(fields, "structured_outputs", Any) != constraint:
        raise _refused(name, "says something else than 'structured_outputs': give one of them.")
    return made


def _check_format(fields: Fields, name: str) -> None:
    """Both would be in force."""
    raw = fields.get("response_format", msgspec.Raw(b"null"))
    if _is_null(raw):
        return
    try:
        kind = msgspec.json.decode(raw, type=_Format).type
    except msgspec.MsgspecError:
        return  # vLLM says what is wrong with it
    if kind not in FREE:
        raise _refused(name, "cannot be had beside 'response_format': an answer follows one of them.")


def _decoded(fields: Fields, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except msgspec.MsgspecError as error:
        raise _refused(name, f"is invalid: {error}.") from error
    except RecursionError as error:
        raise _refused(name, "is nested too deeply.") from error


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"The field {name!r} {why}", param=name, code="invalid_field")
