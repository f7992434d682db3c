"""The ledger's rows beside what the engine counted and the clients saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .cli import say
from .endurance_checks import Finding
from .ledger_load import GONE, PREFIX, REFUSING, Seen
from .upstream import Completion

INPUT, OUTPUT = 1, 2
"""What a token costs, in millionths."""
MILLION = 1_000_000
TOLD = 5
"""Requests that are told of those that are wrong."""
Row = Mapping[str, Any]


class Books(NamedTuple):
    """What each of the three knows of the same requests."""

    seen: Sequence[Seen]
    """By the clients."""
    made: Sequence[Completion]
    """By the engine."""
    counted: Mapping[str, int]
    """The engine's sums."""
    rows: Sequence[Row]
    """In the ledger, as `headrace usage list` tells them."""
    total: Mapping[str, Any]
    """The last row of `headrace usage report`."""


class Pair(NamedTuple):
    """A request: what its client saw, its row, and what the engine made for it."""

    seen: Seen
    row: Row
    made: Completion | None


def compared(books: Books) -> list[Finding]:
    """What is equal, and what is not."""
    ours = [row for row in books.rows if row["request_id"].startswith(PREFIX)]
    rows, tries = ([row for row in ours if (row["try"] is not None) is failed] for failed in (False, True))
    made = {each.id: each for each in books.made}
    row_of = {row["request_id"]: row for row in rows}
    pairs = [Pair(seen, row_of[seen.ask.id], made.get(seen.ask.id)) for seen in books.seen if seen.ask.id in row_of]
    return [
        *_answered(books.seen),
        *_rows(books, rows, pairs),
        *_complete([pair for pair in pairs if not pair.seen.ask.leaves_after and not pair.seen.hit]),
        *_cached([pair for pair in pairs if _without_target(pair.row)], books.seen),
        *_asked(books.made, rows),
        *_in_all(books, pairs),
        *_failed(books, tries, row_of),
        *_left([pair for pair in pairs if pair.seen.ask.leaves_after and not pair.seen.hit]),
        _none("figures of the report that its rows do not add up to", _untrue(books)),
    ]


def _equal(what: str, value: float, expected: float) -> Finding:
    return Finding(what, value, "", expected, expected)


def _none(what: str, bad: Iterable[str]) -> Finding:
    """There are to be none; the first of them are told."""
    found = list(bad)
    if found:
        say(f"ledger: {what}: {', '.join(found[:TOLD])}")
    return Finding(what, len(found), "", most=0)


def _ids(pairs: Iterable[Pair]) -> Iterator[str]:
    return (pair.seen.ask.id for pair in pairs)


def _answered(seen: Sequence[Seen]) -> Iterator[Finding]:
    yield Finding("requests sent", len(seen), "")
    yield _none("not answered, or not with the engine's bytes", (each.ask.id for each in seen if each.error))


def _rows(books: Books, rows: Sequence[Row], pairs: Sequence[Pair]) -> Iterator[Finding]:
    yield _equal("rows of requests in the ledger", len(rows), len(books.seen))
    there = _times(rows)
    yield _none("requests with more than one", (each for each, count in there.items() if count > 1))
    yield _none("requests with none", (each.ask.id for each in books.seen if each.ask.id not in there))
    yield _none("rows that end otherwise than clients saw", _otherwise(pairs))


def _times(rows: Sequence[Row]) -> Counter[str]:
    return Counter(row["request_id"] for row in rows)


def _apart(one: Counter[str], other: Counter[str]) -> list[str]:
    """Those that are in one of them more often."""
    return [*(one - other), *(other - one)]


def _ends_so(pair: Pair) -> bool:
    """Who leaves may have been sent the whole answer by then, without having read it: nobody else can tell."""
    if not pair.seen.ask.leaves_after:
        return (pair.row["ended"], pair.row["status"]) == ("completed", pair.seen.status)
    complete = pair.row["ended"] == "completed" and (pair.made is None or pair.made.finished)
    return complete or pair.row["ended"] == "aborted"


def _otherwise(pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        if not _ends_so(pair):
            ask, row = pair.seen.ask, pair.row
            left = f" left after {pair.seen.chunks} chunks" if ask.leaves_after else ""
            yield f"{ask.id} ({ask.kind}{left}: {row['status']}, {row['ended']}, {row['error']})"


def _complete(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Answers that the engine made and the client got to the end."""
    made = [pair.made for pair in pairs if pair.made is not None and pair.made.finished]
    prompt, answer = sum(each.prompt_tokens for each in made), sum(each.completion_tokens for each in made)
    yield _equal("complete answers of the engine", len(pairs), len(made))
    yield _equal("of them tokens in", _sum(pairs, "input"), prompt)
    yield _equal("of them tokens out", _sum(pairs, "output"), answer)
    yield _equal("of them cost, in millionths", sum(map(_cost, pairs)), INPUT * prompt + OUTPUT * answer)
    yield _none("of them with other tokens, or an estimate", _ids(pair for pair in pairs if not _is_told(pair)))


def _sum(pairs: Sequence[Pair], name: str) -> int:
    return sum(pair.row[name] for pair in pairs)


def _cost(pair: Pair) -> int:
    return round((pair.row["cost"] or 0) * MILLION)


def _is_told(pair: Pair) -> bool:
    row, made = pair.row, pair.made
    told = None if made is None else (made.prompt_tokens, made.completion_tokens)
    return not row["estimated"] and (row["input"], row["output"]) == told


def _without_target(row: Row) -> bool:
    return not row["target"]


def _cached(pairs: Sequence[Pair], seen: Sequence[Seen]) -> Iterator[Finding]:
    """Answers that no backend was asked for."""
    yield _equal("rows of cached answers", len(pairs), sum(each.hit for each in seen))
    yield _none("of them without a hit", _ids(pair for pair in pairs if not pair.seen.hit))
    yield _none("of them not free", _ids(pair for pair in pairs if not _is_free(pair.row)))


def _is_free(row: Row) -> bool:
    return not (row["input"] or row["output"] or row["cached"]) and row["cost"] == 0


def _asked(made: Sequence[Completion], rows: Sequence[Row]) -> Iterator[Finding]:
    asked = Counter(each.id for each in made if each.id.startswith(PREFIX))
    told = Counter(row["request_id"] for row in rows if not _without_target(row))
    yield _equal("rows of requests that the engine was asked", told.total(), asked.total())
    yield _none("of them asked more or less often", _apart(asked, told))


def _in_all(books: Books, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """The engine's sums against all rows, those of the start included. Usage that it told of a stream whose client had
    left by then may have reached nobody."""
    rows = [row for row in books.rows if row["try"] is None and not _without_target(row)]
    lost = [pair.made for pair in pairs if pair.made is not None and pair.row["estimated"]]
    for name, told in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        unheard = sum(getattr(each, told) for each in lost)
        counted = sum(row[name] for row in rows if not row["estimated"])
        what = f"{told.replace('_', ' ')} in all, as the engine counts them"
        yield _equal(what, counted + unheard, books.counted[told])
    yield _equal("completions in all, as the engine counts them", len(rows), books.counted["completions"])


def _failed(books: Books, tries: Sequence[Row], row_of: Mapping[str, Row]) -> Iterator[Finding]:
    """Tries at targets that failed, before another one answered."""
    for model, name in ((REFUSING, "that refuses"), (GONE, "that is gone")):
        here = [row for row in tries if row["model"] == model]
        asked = Counter(each.ask.id for each in books.seen if each.ask.model == model)
        yield _equal(f"failed tries at a target {name}", len(here), len(asked))
        yield _none("of them more or less than one for a request", _apart(asked, _times(here)))
    refused = sum(row["model"] == REFUSING for row in tries)
    yield _equal("refused, as the engine counts it", refused, books.counted["refused"])
    yield _none("failed tries that are not free", (row["request_id"] for row in tries if not _is_free(row)))
    apart = (row for row in tries if row["group"] != row_of.get(row["request_id"], {}).get("group"))
    yield _none("failed tries apart from their request", (row["request_id"] for row in apart))


def _left(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Streams whose clients did not wait for the end; those that went on to it for others have all their tokens."""
    sent = {pair.row["group"]: 0 if pair.made is None else pair.made.chunks for pair in pairs}
    least, most = sum(pair.seen.chunks for pair in pairs), sum(sent.values())
    outside = [pair for pair in pairs if not pair.seen.chunks <= pair.row["output"] <= sent[pair.row["group"]]]
    yield Finding("streams that were left", len(pairs), "")
    yield Finding("of them tokens out", _sum(pairs, "output"), "", least, most)
    yield _none("of them fewer than seen, or more than sent", _ids(outside))
    whole = [pair for pair in pairs if pair.made is not None and pair.made.finished and _goes_on(pair)]
    yield Finding("streams that were left and went on", len(whole), "")
    yield _none("of them with other tokens than the engine's", _ids(pair for pair in whole if not _is_told(pair)))


def _goes_on(pair: Pair) -> bool:
    """Others wanted it, too, or the client had been sent it to the end."""
    return pair.seen.ask.kind == "shared" or pair.row["ended"] == "completed"


def _untrue(books: Books) -> Iterator[str]:
    """The report against all rows, those of the start included."""
    rows = [row for row in books.rows if row["try"] is None]
    sums: dict[str, float] = {
        "requests": len(rows),
        "input": sum(row["input"] for row in rows),
        "output": sum(row["output"] for row in rows),
        "aborted": sum(row["ended"] == "aborted" for row in rows),
        "estimated": sum(row["estimated"] for row in rows),
        "failed_tries": len(books.rows) - len(rows),
        "cost": round(sum((row["cost"] or 0) for row in rows) * MILLION) / MILLION,
    }
    return (name for name, figure in sums.items() if books.total[name] != figure)
