"""A real browser: a page of another origin that streams by fetch, and the playground."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

LIMIT = 0.25
"""Seconds from the abort in the page until the engine computes nothing any more."""
ENDLESS = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 1500, "ignore_eos": True}
SHORT = {
    "messages": [{"role": "user", "content": "Write a short story about the sea."}],
    "max_tokens": 12,
    "temperature": 0,
}


class Page:
    """page.html in the browser."""

    def __init__(self, chromium: Any, url: str, front: Any, kit: Any) -> None:
        self.chromium, self.front, self.kit = chromium, front, kit
        chromium.get(url)

    def ask(self, model: str, **fields: Any) -> None:
        stack = self.front.stack
        body = {"model": model, **fields}
        self.chromium.execute_script("stream(...arguments)", stack.url + "/chat/completions", stack.key, body)

    def seen(self) -> dict[str, str]:
        found: dict[str, str] = self.chromium.execute_script("return seen")
        return found

    def shown(self) -> str:
        text: str = self.chromium.find_element("id", "text").text
        return text

    def until(self, state: str) -> dict[str, str]:
        self.kit.until(lambda: self.seen()["state"] == state, f"{state}; the page says {self.seen()}", 60)
        return self.seen()


@pytest.fixture
def page(chromium: Any, page_url: str, front: Any, kit: Any) -> Page:
    return Page(chromium, page_url, front, kit)


def test_a_page_of_another_origin_streams_an_answer(page: Page, stack: Any) -> None:
    page.ask(stack.model, **SHORT)
    seen = page.until("done")
    assert seen["text"].strip()
    assert page.shown().strip() == seen["text"].strip()


def test_it_may_read_the_request_id(page: Page) -> None:
    page.ask("fake", **SHORT)
    assert page.until("done")["requestId"]


def test_it_shows_tokens_while_the_stream_is_open(page: Page, stack: Any, kit: Any) -> None:
    page.ask(stack.model, **ENDLESS)
    kit.until(lambda: len(page.shown()) > 20, "the first tokens")
    assert page.seen()["state"] == "streaming"
    page.chromium.execute_script("controller.abort()")
    page.until("stopped")


def test_stopping_it_midway_stops_the_engine(page: Page, stack: Any, kit: Any) -> None:
    page.ask(stack.model, **ENDLESS)
    kit.until(lambda: len(page.shown()) > 20, "the first tokens")
    assert not stack.engine_is_idle()
    started = time.perf_counter()
    page.chromium.execute_script("controller.abort()")
    kit.until(stack.engine_is_idle, "the engine's rest")
    seconds = time.perf_counter() - started
    print(f"the engine was idle {seconds * 1000:.0f} ms after the page's abort")
    assert seconds < LIMIT
    assert page.until("stopped")["text"]


def test_an_error_reaches_the_page_in_words(page: Page) -> None:
    page.ask("gpt-99", **SHORT)
    assert page.until("failed")["problem"] == "model_not_found"


def test_a_page_of_an_origin_that_is_not_named_gets_nothing(
    chromium: Any, stranger_url: str, front: Any, kit: Any
) -> None:
    page = Page(chromium, stranger_url, front, kit)
    page.ask("fake", **SHORT)
    seen = page.until("failed")
    assert seen["text"] == seen["requestId"] == ""
    assert [path for path, _, _ in front.stack.fake.requests if path.endswith("completions")] == []


class Playground:
    """The playground as a person uses it."""

    def __init__(self, chromium: Any, front: Any, kit: Any) -> None:
        self.chromium, self.kit = chromium, kit
        chromium.get(front.stack.origin + "/playground")
        self.one("#key").send_keys(front.stack.key, Keys.TAB)
        kit.until(lambda: self.chromium.find_elements("css selector", "#model option"), "the list of models")

    def one(self, selector: str) -> Any:
        return self.chromium.find_element("css selector", selector)

    def answers(self) -> list[str]:
        return [each.text for each in self.chromium.find_elements("css selector", ".assistant .text")]

    def is_idle(self) -> bool:
        streaming = self.chromium.find_elements("css selector", ".streaming")
        return not streaming and self.one("#send").is_displayed()

    def say(self, model: str, text: str, max_tokens: int) -> None:
        self.one("#model").send_keys(model)
        self.one("#max-tokens").clear()
        self.one("#max-tokens").send_keys(str(max_tokens))
        self.one("#prompt").send_keys(text)
        self.one("#send").click()


@pytest.fixture
def playground(chromium: Any, front: Any, kit: Any) -> Iterator[Playground]:
    yield Playground(chromium, front, kit)
    chromium.execute_script("sessionStorage.clear()")  # it keeps the key for as long as the tab lives


def test_the_playground_holds_a_conversation_with_the_real_model(playground: Playground, stack: Any, kit: Any) -> None:
    playground.say(stack.model, "Say hello.", 12)
    kit.until(lambda: playground.answers() and playground.is_idle(), "the first answer")
    playground.say(stack.model, "And again.", 12)
    kit.until(lambda: len(playground.answers()) == 2 and playground.is_idle(), "the second answer")
    assert all(playground.answers())


def test_the_playgrounds_stop_button_stops_the_engine(playground: Playground, stack: Any, kit: Any) -> None:
    playground.say(stack.model, "Write a very long story about the sea, in many chapters.", 1500)
    kit.until(lambda: any(len(answer) > 10 for answer in playground.answers()), "the first tokens")
    assert not stack.engine_is_idle(), "the answer was over too soon for this test"
    playground.chromium.execute_script(
        "document.querySelector('#stop').addEventListener('click', () => { window.clicked = Date.now(); }, true)"
    )
    playground.one("#stop").click()
    kit.until(stack.engine_is_idle, "the engine's rest")
    seconds = time.time() - playground.chromium.execute_script("return window.clicked") / 1000
    print(f"the engine was idle {seconds * 1000:.0f} ms after the click")
    assert seconds < LIMIT
    kit.until(playground.is_idle, "the page's rest")
    assert "You stopped this answer." in playground.one(".problem").text
