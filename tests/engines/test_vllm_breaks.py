"""A vLLM server that breaks while it answers: what its callers get, how the gateway sees it, and its coming back.

Each story is told once, with several streams at the same time, and looked at by many tests. The model's text is the
same at any temperature, but the gateway cannot know that: what was asked with one above 0 it can only continue.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ..stack import Answer
from .asking import HELLO, Asked, Caller, calling
from .vllm import Server, table

DEADLINES = "deadlines = { first_byte = 8, idle = 8 }"
"""nginx reckons with the larger of the two, where it has only a script to look at streams."""
MODELS = f"""
pair = {{ targets = ["a", "b"], {DEADLINES} }}
inline = {{ targets = ["a", "b"], delivery = "inline", {DEADLINES} }}
resumed = {{ targets = ["a", "b"], midstream = "resume", {DEADLINES} }}
repeated = {{ targets = ["a-anew", "b-anew"], midstream = "resume", {DEADLINES} }}
"""
PLUGINS = """
[plugins.health]
interval = 0.5
fast_interval = 0.2
timeout = 1.5
start_period = 300
"""
CUTS: dict[str, Callable[[Server], None]] = {
    "it hangs": lambda server: server.signal(signal.SIGSTOP),
    "SIGTERM": lambda server: server.signal(signal.SIGTERM),
    "kill -9": lambda server: server.signal(signal.SIGKILL),
    "kill -9 of its engine": lambda server: server.signal(signal.SIGKILL, engine=True),
}
TEXTS = {"prompt": "What does the wheel do?\n"}
TOLD: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
BEGUN = 20
"""Chunks that each stream has brought when the server breaks; the whole text has 960."""
RESUMED = pytest.mark.parametrize("name", ["chat", "chat, begun anew", "completions"])
DELIVERED = {
    "by the core": (0, "inline", "inline"),
    "by nginx": (0, "pair", "offload"),
    "by nginx with our module": (1, "pair", "offload"),
}
"""Which gateway and which model; and what its log calls the delivery."""
CUT = pytest.mark.parametrize("name", DELIVERED)


class Listening(threading.Thread):
    """One stream, read to its end from a connection of its own."""

    def __init__(self, caller: Caller, model: str) -> None:
        super().__init__(daemon=True)
        self._route, self._body = caller.route, {"model": model, "messages": HELLO, "stream": True}
        self._answers: list[Answer] = []
        self.start()

    def run(self) -> None:
        self._answers.append(self._route.post(self._body))

    def answer(self) -> Answer:
        """All of it, once it is over."""
        self.join(60)
        return self._answers[0]


@dataclass
class Story:
    """What happened."""

    callers: tuple[Caller, Caller]
    whole: dict[str, Any]
    """The undisturbed answers of chat and completions."""
    asked: dict[str, Asked] = field(default_factory=dict)
    heard: dict[str, Answer] = field(default_factory=dict)
    """The same without OpenAI's client, as it came over the wire."""
    noticed_seconds: float = 0.0
    """Until the gateway knew that the server was down."""
    meanwhile: list[Asked] = field(default_factory=list)
    """What was asked when it was down."""
    loading: list[str] = field(default_factory=list)
    """How the server was, as a gateway that has just started knew it while it loaded, and then."""
    back: str = ""
    """Who answered when it was up again."""


@pytest.fixture(scope="module")
def callers(all_servers: dict[str, Server], own_stack: Any) -> Iterator[tuple[Caller, Caller]]:
    """Of a gateway whose nginx looks at streams with a script, and of one with our module."""
    anew = table({f"{name}-anew": each for name, each in all_servers.items()})
    backends = table(all_servers, ", prefill = true") + "\n" + anew
    tables = {"backends": backends, "models": MODELS, "plugins": PLUGINS}
    with (
        own_stack(way="offload", **tables) as first,
        own_stack(way="module", **tables) as second,
        calling(first) as one,
        calling(second) as two,
    ):
        yield one, two


@pytest.fixture(scope="module", params=CUTS)
def story(
    callers: tuple[Caller, Caller],
    all_servers: dict[str, Server],
    own_stack: Any,
    kit: Any,
    request: pytest.FixtureRequest,
) -> Story:
    a, b = all_servers["a"].ready(), all_servers["b"].ready()
    caller, _ = callers
    for each in callers:
        kit.until(lambda: set(each.conditions().values()) == {"up"}, "both being up", 60)  # noqa: B023
    told = Story(callers, {"chat": b.ask("/v1/chat/completions", {"messages": HELLO, "temperature": 0})})
    told.whole["chat, begun anew"] = told.whole["chat"]
    told.whole["completions"] = b.ask("/v1/completions", {**TEXTS, "temperature": 0, "max_tokens": 1500})
    told.asked = {
        "chat": caller.ask("resumed", temperature=0.9, **TOLD),
        "chat, begun anew": caller.ask("repeated", **TOLD),
        "completions": caller.ask("resumed", **TEXTS, temperature=0.9, max_tokens=1500, **TOLD),
    }
    listening = {}
    for name, (which, model, _) in DELIVERED.items():
        told.asked[name] = callers[which].ask(model, stream=True)
        listening[name] = Listening(callers[which], model)
    for asked in told.asked.values():
        asked.begun(BEGUN)
    over = {name: (len(asked.chunks), asked.error) for name, asked in told.asked.items() if not asked.is_alive()}
    assert not over, "some streams are over already"
    broke = time.monotonic()
    CUTS[request.param](a)
    kit.until(lambda: caller.conditions()["a"] == "down", "its being noticed", 60)
    told.noticed_seconds = time.monotonic() - broke
    print(f"{request.param}: noticed after {told.noticed_seconds:.1f} s")
    for asked in told.asked.values():
        asked.wait()
    told.heard = {name: each.answer() for name, each in listening.items()}
    told.meanwhile = [caller.ask("pair", max_tokens=3, stream=stream).wait() for stream in (False, True)]
    if request.param == "it hangs":
        a.signal(signal.SIGCONT)
    else:
        bring_back(a, told, all_servers, own_stack, kit)
    kit.until(lambda: set(caller.conditions().values()) == {"up"}, "both being up again", 60)
    told.back = caller.target(caller.ask("pair", max_tokens=3).wait())
    kit.until(a.at_rest, "the engine's rest")
    return told


def bring_back(a: Server, told: Story, all_servers: dict[str, Server], own_stack: Any, kit: Any) -> None:
    """Start the server again, and before it is there a gateway."""
    backends = "\n".join(
        f'{name} = {{ provider = "openai", base_url = "{each.url}" }}' for name, each in all_servers.items()
    )
    models = 'pair = { targets = ["a", "b"] }'
    a.start()
    with own_stack(way="inline", backends=backends, models=models, plugins=PLUGINS) as stack, calling(stack) as fresh:
        kit.until(lambda: "unknown" not in fresh.conditions().values(), "the first checks")
        told.loading.append(fresh.conditions()["a"])
        a.ready()
        kit.until(lambda: fresh.conditions()["a"] != "starting", "its being up")
        told.loading.append(fresh.conditions()["a"])


@RESUMED
def test_the_answer_is_the_one_that_would_have_come(story: Story, name: str) -> None:
    asked, whole = story.asked[name], story.whole[name]["choices"][0]
    assert (asked.error, asked.finish) == (None, [whole["finish_reason"]])
    assert asked.text == (whole["text"] if name == "completions" else whole["message"]["content"])


@RESUMED
def test_an_answer_of_two_servers_reads_as_one(story: Story, name: str) -> None:
    asked = story.asked[name]
    parts = [getattr(choice, "delta", None) for chunk in asked.chunks for choice in chunk.choices]
    assert len({chunk.id for chunk in asked.chunks}) == 1
    assert [part.role for part in parts if part and part.role] == ["assistant"] * (name != "completions")


@RESUMED
def test_the_tokens_of_both_are_counted_once(story: Story, name: str) -> None:
    assert story.asked[name].usage.total_tokens == story.whole[name]["usage"]["total_tokens"]


@RESUMED
def test_the_log_knows_who_went_on(story: Story, name: str) -> None:
    line = story.callers[0].logged(story.asked[name])
    other = "b-anew" if name == "chat, begun anew" else "b"
    assert (line["completed"], line["target"], line["attempts"]) == (True, other, 2)


@CUT
def test_a_stream_that_nobody_goes_on_with_is_never_taken_for_a_success(story: Story, name: str) -> None:
    asked, whole = story.asked[name], story.whole["chat"]["choices"][0]["message"]["content"]
    assert asked.error is not None
    assert asked.finish == []
    assert asked.text and asked.text != whole and whole.startswith(asked.text)


@CUT
def test_it_ends_with_one_error_and_is_not_said_to_be_done(story: Story, name: str) -> None:
    *events, last = story.heard[name].events
    assert len(events) > 1
    assert json.loads(last)["error"]["code"] == "stream_truncated"
    assert not any(event == "[DONE]" or "error" in json.loads(event) for event in events)


@CUT
def test_the_log_says_that_it_broke(story: Story, name: str) -> None:
    which, _, delivery = DELIVERED[name]
    line = story.callers[which].logged(story.asked[name])
    assert (line["delivery"], line["completed"], line["level"]) == (delivery, False, "error")


def test_callers_who_ask_meanwhile_are_answered_by_the_other(story: Story) -> None:
    assert [(asked.error, story.callers[0].target(asked)) for asked in story.meanwhile] == [(None, "b")] * 2


def test_a_server_that_loads_its_model_is_starting_until_it_is_up(story: Story) -> None:
    assert story.loading in ([], ["starting", "up"])  # who hangs has not been started again


def test_a_server_that_is_back_is_asked_first_again(story: Story) -> None:
    assert story.back == "a"
