"""How long reports over ten million requests take: `python plugins/usage/tests/scale.py FILE [MILLIONS]`.

Makes a ledger of 90 days up to now, of 300 keys in 20 teams, 5 models on 6 targets, some 2,500 series; if FILE is there
already it is asked as it is.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from headrace_usage import schema
from headrace_usage.entry import Series
from headrace_usage.listing import listed
from headrace_usage.report import report
from headrace_usage.selection import Question, Selection
from headrace_usage.store import Store
from headrace_usage.times import DAY, HOUR

DAYS = 90
KEYS, TEAMS, MODELS, TARGETS = 300, 20, 5, 6
STATUSES = (200, 200, 200, 200, 429, 503)


def all_series(chance: random.Random) -> list[Series]:
    """What callers ask for: each key two or three models, at some targets, with some kinds of ends."""
    found: dict[Series, None] = {}
    for key in range(KEYS):
        for model in chance.sample(range(MODELS), chance.randint(2, 3)):
            for _ in range(5):
                target, status = f"gpu{chance.randrange(TARGETS)}", chance.choice(STATUSES)
                team = f"team-{key % TEAMS}"
                who = (f"k{key:05}", f"key {key}", f"owner-{key % 90}", team, "user")
                each = Series(*who, f"model-{model}", target, "chat", status, 0)
                found[each] = None
    return list(found)


def make(path: Path, count: int) -> None:
    """Write the rows in the order of their time, then their sums."""
    now = int(time.time() * 1000)
    first, step = now - DAYS * DAY, DAYS * DAY // count
    with Store.open(path, 5.0) as store:
        store.run("PRAGMA synchronous = OFF")
        ids = sorted(store._id(each) for each in all_series(random.Random(1)))
        values = {
            "at": f"{first} + n * {step}",
            "writer": "1",
            "number": "n",
            "attempt": "0",
            "series": f"{ids[0]} + (abs(random()) % {len(ids)})",
            "request_id": "printf('%032x', n)",
            "input": "200 + abs(random()) % 3000",
            "output": "abs(random()) % 800",
            "cost": "abs(random()) % 5000",
            "delivery": "2",
            "stream": "n % 2",
            "latency": "100000 + abs(random()) % 9000000",
            "ttft": "20000 + abs(random()) % 500000",
            "latency_bucket": "abs(random()) % 11 + abs(random()) % 12 + 8",
            "ttft_bucket": "abs(random()) % 11 + abs(random()) % 10 + 4",
        }
        columns = ", ".join(values.get(name, "NULL" if name in schema.NULLABLE else "0") for name in schema.COLUMNS)
        for name in (*(f"l{bucket}" for bucket in range(8, 30)), *(f"t{bucket}" for bucket in range(4, 24))):
            store.run("INSERT INTO used VALUES (:name)", name=name)
        for day in range(first // DAY, now // DAY + 1):
            a, b = (max(0, -(-(each * DAY - first) // step)) for each in (day, day + 1))
            with store.writing():
                store.run(
                    f"INSERT INTO requests SELECT {columns} FROM (WITH RECURSIVE c(n) AS "
                    f"(VALUES ({a}) UNION ALL SELECT n + 1 FROM c WHERE n < {min(b, count) - 1}) SELECT n FROM c)"
                )
                for table, length in (("hours", HOUR), ("days", DAY)):
                    store.run(
                        f"INSERT INTO {table} SELECT series, at / {length}, {', '.join(schema.MEASURES.values())} "
                        f"FROM requests WHERE at >= {day * DAY} AND at < {(day + 1) * DAY} GROUP BY 1, 2"
                    )


def ask(path: Path) -> None:
    """Print how long each question takes."""
    now = int(time.time() * 1000)
    whole = (now - (DAYS + 1) * DAY) // HOUR * HOUR
    questions = {
        "90 days by key and model": Question(since=whole),
        "90 days by day": Question(since=whole, by=("day",)),
        "90 days by day and model": Question(since=whole, by=("day", "model")),
        "90 days by day and key": Question(since=whole, by=("day", "key")),
        "90 days by model, one team": Question(since=whole, by=("model",), filters={"team": ("team-3",)}),
        "90 days by team, to the millisecond": Question(since=whole + 12_345_678, until=now - 1_234_567, by=("team",)),
        "7 days by key and model": Question(since=(now - 7 * DAY) // HOUR * HOUR),
        "7 days by hour": Question(since=(now - 7 * DAY) // HOUR * HOUR, by=("hour",)),
        "1 day by status": Question(since=(now - DAY) // HOUR * HOUR, by=("status",)),
    }
    for name, question in questions.items():
        started, before = time.perf_counter(), time.process_time()
        with Store.open(path, 5.0, create=False) as store:
            found = report(store, question)
        passed = time.perf_counter() - started
        busy = time.process_time() - before
        print(f"{name:38} {passed:6.2f} s, {busy:5.2f} s of CPU time, {found.groups} rows")
    started = time.perf_counter()
    with Store.open(path, 5.0, create=False) as store:
        rows = listed(store, Selection(since=whole, filters={"key": ("k00007",)}), 100)
    print(f"{'the last 100 requests of one key':38} {time.perf_counter() - started:6.2f} s   {len(rows)} rows")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    if not file.exists():
        started = time.perf_counter()
        make(file, round(float(sys.argv[2] if len(sys.argv) > 2 else 10) * 1_000_000))
        print(f"made in {time.perf_counter() - started:.0f} s, {file.stat().st_size / 1e9:.2f} GB")
    ask(file)
