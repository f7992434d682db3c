"""Whatever comes in whichever order: no budget is overspent, and what was spent is counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import hookimpl
from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import GatewayError
from headrace.exchange import Exchange, Principal, Usage
from headrace.gateway import Gateway
from headrace.ledger.local import LocalLedger
from headrace.settings import parse
from headrace_budget import Plugin
from headrace_budget.periods import at, zone

CHAT = OPENAI_ENDPOINTS["/v1/chat/completions"]
PRICES = {"test": {"input": 300.0, "output": 1000.0, "cached_input": 100.0, "request": 0.0001}}
CALLERS = [Principal(id=name, team=team) for name, team in (("ada", "red"), ("bob", "red"), ("carl", None))]
BUDGETS: dict[str, dict[str, Any]] = {
    "all": {"per": [], "cost_per_month": 0.4, "tokens_per_day": 700},
    "key": {"per": ["key"], "cost_per_day": 0.1},
    "team": {"per": ["team"], "tokens_per_month": 900},
}
NOON = 1_906_372_800.0  # of 2030-05-30 UTC: a month ends soon


class Ask(NamedTuple):
    who: int
    max_tokens: int | None


class End(NamedTuple):
    """The oldest request but so many ends: it has used these parts of what it might have, or it failed."""

    which: int
    prompt: float
    answer: float
    cached: float
    how: str


class Wait(NamedTuple):
    hours: float


part = st.floats(0, 1)
steps = st.lists(
    st.one_of(
        st.builds(Ask, st.integers(0, 2), st.none() | st.integers(1, 200)),
        st.builds(End, st.integers(0, 9), part, part, part, st.sampled_from(["counted", "unknown", "failed"])),
        st.builds(Wait, st.floats(0, 3)),
    ),
    max_size=60,
)


class World:
    """The plugin with its gateway, on a ledger of its own, at a time of its own."""

    def __init__(self, folder: Path) -> None:
        self.now, self.numbers = NOON, itertools.count()
        self.open: list[tuple[Exchange, Any, int]] = []
        self.spent: dict[str, int] = {}
        """By the ledger's key: millionths, or tokens."""
        world = self

        class Counting:
            def __init__(self, config: Any, gateway: Any) -> None: ...

            @hookimpl
            def register_ledgers(self, register: Any) -> None:
                register(LocalLedger(folder / "ledger.mdb", clock=lambda: world.now), name="virtual")

        timed = type("Plugin", (Plugin,), {"clock": lambda _: world.now})
        document = {
            "server": {"state_dir": str(folder), "anonymous": True},
            "models": {"test": {"targets": [{"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}]}},
            "plugins": {
                "openai": {},
                "counting": {},
                "budget": {"limits": list(BUDGETS.values()), "prices": PRICES, "time_zone": "Europe/Berlin"},
            },
        }
        config = parse(document, source="test")
        self.gateway = Gateway(config, "test", {"counting": Counting, "budget": timed}).assemble()
        self.ledger: Any = self.gateway.ledger
        self.plugin = self.gateway.plugins["budget"]

    def ask(self, step: Ask) -> None:
        fields = {
            "model": "test",
            "messages": [{"role": "user", "content": "word " * 10}],
            "max_tokens": step.max_tokens,
        }
        scope = {"headers": [], "method": "POST", "path": CHAT.path, "client": ("127.0.0.1", 1)}
        exchange = Exchange(id=str(next(self.numbers)), endpoint=CHAT, scope=scope, body=json.dumps(fields).encode())
        exchange.peek, exchange.principal = CHAT.read(exchange.body), CALLERS[step.who]
        exchange.model = self.gateway.models.find("test")
        held, began = self.plugin.admit(exchange), at(self.now, zone("Europe/Berlin"))
        with contextlib.suppress(GatewayError):
            at_once(held.__aenter__())
            most = step.max_tokens or exchange.answer_limit
            self.open.append((exchange, (held, began), most or 0))

    def end(self, step: End) -> None:
        if not self.open:
            return
        exchange, (held, began), most = self.open.pop(step.which % len(self.open))
        failed = step.how == "failed"
        target = exchange.model.targets[0] if exchange.model else None
        exchange.attempts.append(SimpleNamespace(target=target, reporting=object() if failed else None))  # type: ignore
        if step.how == "counted":
            prompt = round(step.prompt * self.gateway.estimator.prompt(exchange))
            exchange.usage = Usage(prompt, round(step.answer * most), round(step.cached * prompt))
            self.count(exchange.principal, began, exchange.usage)
        at_once(held.__aexit__(None, None, None))

    def count(self, who: Any, began: Any, usage: Usage) -> None:
        fresh = usage.prompt_tokens - usage.cached_tokens
        money = fresh * 300 + usage.cached_tokens * 100 + usage.completion_tokens * 1000 + 100
        tokens = usage.prompt_tokens + usage.completion_tokens
        for key, amount in (
            (f"all::cost_per_month:{began.month.label}", money),
            (f"all::tokens_per_day:{began.day.label}", tokens),
            (f"key:{who.id}:cost_per_day:{began.day.label}", money),
            *([(f"team:{who.team}:tokens_per_month:{began.month.label}", tokens)] if who.team else []),
        ):
            self.spent[key] = self.spent.get(key, 0) + amount

    def check(self) -> None:
        used = {key.removeprefix("budget:"): used for key, used in at_once(self.ledger.scan("sum", "budget:"))}
        for key, amount in used.items():
            rule, _, rest = key.partition(":")
            field = rest.split(":")[1]
            most = BUDGETS[rule][field]
            assert amount <= (most * 1e6 if field.startswith("cost") else most), key
            assert amount >= self.spent.get(key, 0), key
        assert set(self.spent) <= set(used)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What nothing waits for needs no loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@contextlib.contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder))
        made.ledger.open()
        try:
            yield made
        finally:
            made.ledger.close()


@given(steps=steps)
@settings(max_examples=40, deadline=None)
def test_settled_and_reserved_never_exceed_a_budget_nor_fall_below_what_was_spent(steps: list[Any]) -> None:
    with world() as made:
        for step in steps:
            if isinstance(step, Ask):
                made.ask(step)
            elif isinstance(step, End):
                made.end(step)
            else:
                made.now += step.hours * 3600
            made.check()


def test_requests_that_all_use_what_they_may_spend_a_budget_to_its_end() -> None:
    """That nothing is overspent is no art where nothing is spent."""
    with world() as made:
        for _ in range(100):
            made.ask(Ask(0, None))
            made.end(End(0, 1.0, 1.0, 0.0, "counted"))
        used = {key.split(":")[1]: used for key, used in at_once(made.ledger.scan("sum", "budget:key"))}
    least_request = 20_000  # sixteen tokens of an answer, and the prompt
    assert 100_000 - least_request - 10_000 < used["key"] <= 100_000


def test_a_usage_that_cannot_be_true_does_not_spoil_the_count() -> None:
    with world() as made:
        made.ask(Ask(2, 10))
        exchange, (held, _), _ = made.open.pop()
        exchange.attempts.append(SimpleNamespace(target=exchange.model.targets[0], reporting=None))  # type: ignore
        exchange.usage = Usage(-(10**30), 10**30, -5)
        at_once(held.__aexit__(None, None, None))
        used = dict(at_once(made.ledger.scan("sum", "budget:all")))
    assert all(0 < each < 2**60 for each in used.values())


def test_whoever_comes_while_much_is_reserved_gets_what_is_left() -> None:
    with world() as made:
        for who in range(3):
            made.ask(Ask(who, None))
            made.check()
        limits = [exchange.answer_limit for exchange, _, _ in made.open]
    assert limits and all(limit is not None and limit >= 16 for limit in limits)
