"""`reference/hooks.md`, from `headrace.hookspecs`."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from typing import Any

from headrace import hookspecs
from headrace.kinds import Kind

from .source import HEADER, class_node, function_node, signature, string_of

SECTION = re.compile(r"^# --- (.+?)\.? ---$", re.MULTILINE)
FAILURE = re.compile(r"\s*Fails unexpectedly(?:, here or later)?: (.+?\.)(?=\s|$)", re.DOTALL)


def page() -> str:
    """The whole page."""
    parts = [HEADER, "# Hooks\n\n", inspect.cleandoc(hookspecs.__doc__ or ""), "\n\n", OBJECTS, _kinds(), _overview()]
    for title, hooks in sections().items():
        parts.append(f"\n## {title.partition(':')[0].partition(',')[0]}\n\n{_rest(title)}\n")
        parts.extend(_hook(hook, title) for hook in hooks)
    return "".join(parts)


OBJECTS = """\
What the arguments are and have is in [objects](objects.md); where each hook stands in the life of a request is in
[the way of a request](../concepts/request.md). `headrace hooks` prints which plugins implement which hook, in order.
"""


def sections() -> dict[str, list[Any]]:
    """The hooks under the headings of `hookspecs.py`, in order."""
    source = inspect.getsource(hookspecs)
    starts = [(source.count("\n", 0, match.start()) + 1, match[1]) for match in SECTION.finditer(source)]
    found: dict[str, list[Any]] = {title: [] for _, title in starts}
    for hook in (each for each in vars(hookspecs).values() if hasattr(each, "headrace_kind")):
        line = function_node(hook).lineno
        found[next(title for start, title in reversed(starts) if start < line)].append(hook)
    return found


def _rest(title: str) -> str:
    """The words after the heading's first, as a sentence."""
    rest = title.partition(":")[2] or title.partition(",")[2]
    text = rest.strip()
    return f"{text[:1].upper()}{text[1:]}."


def _kinds() -> str:
    docs = _docs_of_members()
    rows = "".join(f"| `{kind.name}` | {docs[kind.name]} |\n" for kind in Kind)
    return f"\n## Kinds\n\nHow the implementations of one hook combine:\n\n| kind | |\n|---|---|\n{rows}"


def _docs_of_members() -> dict[str, str]:
    body = class_node(Kind).body
    return {
        ast.unparse(each.targets[0]): string_of(after)
        for each, after in itertools.pairwise(body)
        if isinstance(each, ast.Assign)
    }


def _overview() -> str:
    rows = [
        f"| [`{hook.__name__}`](#{hook.__name__}) | {hook.headrace_kind.name} | {_colour(hook)} |\n"
        for hooks in sections().values()
        for hook in hooks
    ]
    return "\n## All hooks\n\n| hook | kind | colour |\n|---|---|---|\n" + "".join(rows)


def _colour(hook: Any) -> str:
    return "async" if hook.headrace_async else "sync"


def _hook(hook: Any, title: str) -> str:
    doc = inspect.getdoc(hook) or ""
    failure = FAILURE.search(doc)
    text = FAILURE.sub("", doc).strip()
    when = "setup" if title.startswith("Setup") else "per request"
    fails = (
        " ".join(failure[1].split()) if failure else "the start stops, and the message names the plugin and the hook."
    )
    return (
        f"\n### {hook.__name__}\n\n```python\n{signature(function_node(hook))}: ...\n```\n\n{text}\n\n"
        f"*{_colour(hook)}, {hook.headrace_kind.name}, {when}. Fails unexpectedly: {fails}*\n"
    )
