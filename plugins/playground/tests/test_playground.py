"""The page in a real browser, before a real gateway."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver.common.keys import Keys

if TYPE_CHECKING:
    from plugins.playground.tests.conftest import PageDriver

KEY = "hr-secret-key"
DONE = b"data: [DONE]\n\n"


def event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


def answers(page: PageDriver) -> list[str]:
    return [each.text for each in page.css(".assistant .text")]


def test_the_models_are_listed(page: PageDriver) -> None:
    assert [option.text for option in page.css("#model option")] == ["first", "second"]


def test_tokens_appear_while_the_stream_is_open(page: PageDriver) -> None:
    more = threading.Event()
    page.backend.script = [delta("Hel"), more, delta("lo!"), DONE]
    page.say("hi")
    page.until(lambda: answers(page) == ["Hel"])
    assert page.css(".streaming")
    assert page.one("#stop").is_displayed()
    more.set()
    page.until(page.idle)
    assert answers(page) == ["Hello!"]


def test_stop_closes_the_connection_to_the_backend(page: PageDriver) -> None:
    never = threading.Event()
    page.backend.script = [delta("Hel"), never]
    page.say("hi")
    page.until(lambda: answers(page) == ["Hel"])
    page.one("#stop").click()
    assert page.backend.left.wait(30)
    page.until(page.idle)
    assert answers(page) == ["Hel"]
    assert "You stopped this answer." in page.text(".problem")
    never.set()


def test_escape_stops_too(page: PageDriver) -> None:
    never = threading.Event()
    page.backend.script = [delta("Hel"), never]
    page.say("hi")
    page.until(lambda: answers(page) == ["Hel"])
    page.one("#prompt").send_keys(Keys.ESCAPE)
    assert page.backend.left.wait(30)
    page.until(page.idle)
    never.set()


def test_a_new_chat_stops_what_is_running_and_forgets_the_rest(page: PageDriver) -> None:
    never = threading.Event()
    page.backend.script = [delta("Hel"), never]
    page.say("hi")
    page.until(lambda: answers(page) == ["Hel"])
    page.one("#clear").click()
    assert page.backend.left.wait(30)
    never.set()
    page.backend.script = None
    page.say("again")
    page.until(page.idle)
    assert answers(page) == ["You said: again"]
    assert [each["content"] for each in page.backend.requests[-1]["messages"]] == ["again"]


def test_the_conversation_and_the_settings_are_sent(page: PageDriver) -> None:
    page.one("#model").send_keys("second")
    page.write("#system", "Be brief.")
    page.write("#temperature", "0.5")
    page.write("#max-tokens", "20")
    page.say("one")
    page.until(page.idle)
    page.say("two")
    page.until(lambda: len(page.backend.requests) == 2 and page.idle())
    assert page.backend.requests[1] == {
        "model": "second",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "You said: one"},
            {"role": "user", "content": "two"},
        ],
        "temperature": 0.5,
        "max_tokens": 20,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_settings_left_empty_are_not_sent(page: PageDriver) -> None:
    page.say("hi")
    page.until(page.idle)
    assert set(page.backend.requests[0]) == {"model", "messages", "stream", "stream_options"}


def test_a_setting_out_of_range_is_not_sent(page: PageDriver) -> None:
    page.write("#temperature", "7")
    page.say("hi")
    assert page.browser.switch_to.active_element.get_attribute("id") == "temperature"
    assert page.backend.requests == []
    assert page.value("#prompt") == "hi"


def test_enter_sends_and_shift_enter_starts_a_new_line(page: PageDriver) -> None:
    page.one("#prompt").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    page.until(page.idle)
    assert page.backend.requests[0]["messages"][0]["content"] == "one\ntwo"


def test_text_is_shown_as_text(page: PageDriver) -> None:
    hostile = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script> & <b>bold</b>"
    page.backend.script = [delta(hostile), DONE]
    page.say(hostile)
    page.until(page.idle)
    assert answers(page) == [hostile]
    assert page.text(".user .text") == hostile
    assert page.css("#log img, #log script, #log b") == []
    assert page.browser.title == "Headrace playground"


def test_a_stream_cut_anywhere_is_put_together(page: PageDriver) -> None:
    text = "Grüße, 漢字 🌊"
    stream = b": comment\r\n\r\n" + delta("").replace(b"\n", b"\r\n") + b"data:" + delta(text)[6:] + DONE
    stream = stream.replace(json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode())
    page.backend.script = [bytes([byte]) for byte in stream]
    page.say("hi")
    page.until(page.idle)
    assert answers(page) == [text]
    assert page.css(".problem") == []


def test_carriage_returns_alone_end_lines_too(page: PageDriver) -> None:
    page.backend.script = [delta("a").replace(b"\n", b"\r"), delta("b").replace(b"\n", b"\r"), DONE]
    page.say("hi")
    page.until(page.idle)
    assert answers(page) == ["ab"]


def test_a_stream_that_ends_early_is_shown_as_incomplete(page: PageDriver) -> None:
    page.backend.script = [delta("Hel")]
    page.say("hi")
    page.until(page.idle)
    assert answers(page) == ["Hel"]
    assert "incomplete" in page.text(".problem")


def test_an_error_within_the_stream_is_shown_even_if_done_follows(page: PageDriver) -> None:
    page.backend.script = [delta("Hel"), event({"error": {"message": "The engine died."}}), DONE]
    page.say("hi")
    page.until(page.idle)
    assert answers(page) == ["Hel"]
    assert "The backend failed before the answer was complete." in page.text(".problem")


def test_a_refusal_is_shown_in_words_and_can_be_tried_again(page: PageDriver) -> None:
    page.backend.status = "500 Internal Server Error"
    page.backend.script = [b'{"error": {"message": "out of memory"}}']
    page.say("hi")
    page.until(page.idle)
    assert "The backend failed with status 500." in page.text(".problem")
    assert "Status 502, request" in page.text(".problem small")
    page.backend.status, page.backend.script = "200 OK", None
    page.one(".again").click()
    page.until(lambda: answers(page) == ["You said: hi"])
    page.until(page.idle)
    assert page.css(".problem") == []


def test_the_figures_come_from_the_usage_if_there_is_one(page: PageDriver) -> None:
    page.say("hi")
    page.until(page.idle)
    assert page.text(".figures").startswith("TTFT ")
    assert page.text(".figures").endswith("· 17 tokens")


def test_without_usage_the_figures_are_marked_as_approximate(page: PageDriver) -> None:
    page.backend.script = [delta("a"), delta("b"), delta("c"), DONE]
    page.say("hi")
    page.until(page.idle)
    assert page.text(".figures").endswith("· ≈ 3 tokens")


def test_reasoning_stands_apart_from_the_answer(page: PageDriver) -> None:
    thought = event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    page.backend.script = [thought, delta("yes"), DONE]
    page.say("hi")
    page.until(page.idle)
    assert answers(page) == ["yes"]
    page.one(".thinking summary").click()
    assert page.text(".thinking div") == "hm"


def test_without_a_key_the_page_asks_for_one(locked_page: PageDriver) -> None:
    assert "Enter your API key" in locked_page.text("#models-note")
    assert locked_page.browser.switch_to.active_element.get_attribute("id") == "key"


def test_with_the_key_it_answers_and_the_key_stays_in_the_tab(locked_page: PageDriver) -> None:
    page = locked_page
    page.one("#key").send_keys(KEY, Keys.TAB)
    page.until(lambda: page.value("#model") == "first")
    page.say("hi")
    page.until(lambda: answers(page) == ["You said: hi"])
    page.until(page.idle)
    assert KEY not in page.browser.current_url
    assert page.browser.get_cookies() == []
    assert page.browser.execute_script("return JSON.stringify(localStorage)") == "{}"
    page.browser.refresh()
    page.until(lambda: page.value("#model") == "first")
    assert page.value("#key") == KEY


def test_a_wrong_key_is_said_in_the_gateways_words(locked_page: PageDriver) -> None:
    locked_page.one("#key").send_keys("hr-wrong", Keys.TAB)
    locked_page.until(lambda: "This key is not known." in locked_page.text("#models-note"))
    assert "bad" in (locked_page.one("#models-note").get_attribute("class") or "")


def test_a_key_that_cannot_be_one_is_explained(locked_page: PageDriver) -> None:
    locked_page.one("#key").send_keys("hr-schlüssel", Keys.TAB)
    locked_page.until(lambda: "characters that no key has" in locked_page.text("#models-note"))


def test_every_control_has_a_name(page: PageDriver) -> None:
    unnamed = page.browser.execute_script(
        "return [...document.querySelectorAll('input, select, textarea, button')]"
        ".filter((each) => !each.labels?.length && !each.textContent.trim()).map((each) => each.id)"
    )
    assert unnamed == []
    assert page.one("#log").get_attribute("aria-live") == "polite"


def test_the_whole_page_works_from_the_keyboard(page: PageDriver) -> None:
    page.one("#prompt").send_keys("hi", Keys.TAB)
    assert page.browser.switch_to.active_element.get_attribute("id") == "send"
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(page.idle)
    assert answers(page) == ["You said: hi"]
    assert page.browser.switch_to.active_element.get_attribute("id") == "prompt"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(page: PageDriver, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.backend.script = [delta("x" * 400 + " end"), DONE]
        page.say("y" * 400)
        page.until(page.idle)
        root = "document.documentElement"
        assert page.browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
        assert page.one("#send").rect["x"] + page.one("#send").rect["width"] <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_narrow_window_hides_the_settings_behind_a_button(page: PageDriver) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert not page.one("#model").is_displayed()
        page.one("#toggle").click()
        assert page.one("#model").is_displayed()
        assert page.one("#toggle").get_attribute("aria-expanded") == "true"
        page.say("hi")
        page.until(page.idle)
        assert not page.one("#model").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_policy_is_enforced(page: PageDriver) -> None:
    blocked = page.browser.execute_async_script(
        "const done = arguments[0];"
        "addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective), { once: true });"
        "fetch('http://127.0.0.1:9/').catch(() => {});"
    )
    assert blocked == "connect-src"
    page.console()  # the violation we provoked
