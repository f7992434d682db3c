"""A real gateway and a scripted backend in a thread of their own, and a real headless Chromium before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from headrace import hookimpl
from headrace.errors import Unauthenticated
from headrace.exchange import Exchange, Principal
from headrace.gateway import Gateway
from headrace.testing import serve

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")
Step = bytes | threading.Event
"""What a backend does next: send these bytes, or wait for this event."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
KEY = "hr-secret-key"


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Backend:
    """Answers every chat with what the test puts on `script`: bytes to send, or an Event to wait for.

    Without a script it echoes the last message. `requests` holds the bodies; `left` is set when a client leaves early.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what one test did before the next."""
        self.script: Sequence[Step] | None = None
        self.status = "200 OK"
        self.requests: list[dict[str, Any]] = []
        self.left = threading.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                await self._send(writer, [json.dumps({"data": []}).encode()], b"application/json")
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            request = json.loads(await reader.readexactly(length))
            self.requests.append(request)
            departure = asyncio.create_task(reader.read())
            sending = asyncio.create_task(self._send(writer, self.script or self._echo(request), b"text/event-stream"))
            await asyncio.wait([departure, sending], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self.left.set()
            for task in (departure, sending):
                task.cancel()
            await asyncio.gather(departure, sending, return_exceptions=True)
        finally:
            writer.close()

    def _echo(self, request: Mapping[str, Any]) -> Sequence[Step]:
        text = "You said: " + request["messages"][-1]["content"]
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 17}}
        return [event(delta(text)), event(usage), DONE]

    async def _send(self, writer: asyncio.StreamWriter, script: Sequence[Step], content_type: bytes) -> None:
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: %s\r\n" % (self.status.encode(), content_type))
        writer.write(b"Connection: close\r\n\r\n")
        for step in script:
            if isinstance(step, threading.Event):
                while not step.is_set():
                    await asyncio.sleep(0.01)
            else:
                writer.write(step)
                await writer.drain()


class Site:
    """The gateway's address, and the backend behind it."""

    def __init__(self, url: str, backend: Backend) -> None:
        self.url = url
        self.backend = backend


class Doorkeeper:
    """A plugin that knows one key. Stands in for any that authenticates."""

    def __init__(self, config: object, gateway: Gateway) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        given = exchange.header(b"authorization")
        if given is None:
            return None
        if given != f"Bearer {KEY}":
            raise Unauthenticated("This key is not known.")
        return Principal(id="tester")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Answers without a key."""
    with serving(tmp_path_factory.mktemp("site"), anonymous=True) as site:
        yield site


@pytest.fixture(scope="session")
def locked_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Asks for `KEY`."""
    with serving(tmp_path_factory.mktemp("locked"), anonymous=False) as site:
        yield site


@contextlib.contextmanager
def serving(state_dir: Path, *, anonymous: bool) -> Iterator[Site]:
    ready: Future[Site] = Future()
    end = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve_until(end, ready, state_dir, anonymous)))
    thread.start()
    try:
        yield ready.result(30)
    finally:
        end.set()
        thread.join(30)


async def serve_until(end: threading.Event, ready: Future[Site], state_dir: Path, anonymous: bool) -> None:
    backend = Backend()
    behind = await asyncio.start_server(backend.answer, "127.0.0.1", 0)
    document = configuration(behind.sockets[0].getsockname()[1], state_dir, anonymous)
    try:
        async with behind, serve(document, plugins={} if anonymous else {"doorkeeper": Doorkeeper}) as running:
            ready.set_result(Site(running.url, backend))
            await asyncio.to_thread(end.wait)
    except Exception as error:
        if ready.done():
            raise
        ready.set_exception(error)


def configuration(port: int, state_dir: Path, anonymous: bool) -> dict[str, Any]:
    return {
        "server": {"state_dir": str(state_dir), "anonymous": anonymous, "shutdown_timeout": 2},
        "backends": {"behind": {"provider": "openai", "base_url": f"http://127.0.0.1:{port}"}},
        "models": {"first": {"targets": ["behind"]}, "second": {"targets": ["behind"]}},
        "plugins": {"openai": {}, "playground": {}},
    }


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the whole run."""
    if (CHROMIUM is None or CHROMEDRIVER is None) and not os.environ.get("CI"):
        pytest.skip("chromium and chromedriver are not installed")
    assert CHROMIUM, "chromium must be installed in CI"
    assert CHROMEDRIVER, "chromedriver must be installed in CI"
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,800",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """The browser with an empty tab storage, and the check that the page broke no policy and threw nothing."""
    console(chromium)  # what an earlier test left
    yield chromium
    log = [entry["message"] for entry in console(chromium) if entry["level"] != "DEBUG"]
    chromium.execute_script("sessionStorage.clear()")
    chromium.get("about:blank")
    unexpected = [line for line in log if "Failed to load resource" not in line]  # an error answer we asked for
    assert unexpected == []


@pytest.fixture
def page(browser: Chrome, site: Site) -> Iterator[PageDriver]:
    site.backend.reset()
    yield opened(browser, site)


@pytest.fixture
def locked_page(browser: Chrome, locked_site: Site) -> Iterator[PageDriver]:
    locked_site.backend.reset()
    yield opened(browser, locked_site)


def console(browser: Chrome) -> list[dict[str, Any]]:
    """What the browser logged since the last call."""
    entries: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium left it bare
    return entries


def opened(browser: Chrome, site: Site) -> PageDriver:
    browser.get(site.url + "/playground")
    page = PageDriver(browser, site.backend)
    page.until(lambda: page.css("#model option") and page.text("#models-note") + page.value("#model"))
    return page


class PageDriver:
    """What a person does with the page, and sees."""

    def __init__(self, browser: Chrome, backend: Backend) -> None:
        self.browser = browser
        self.backend = backend

    def console(self) -> list[dict[str, Any]]:
        return console(self.browser)

    def css(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return "\n".join(each.text for each in self.css(selector))

    def value(self, selector: str) -> str:
        value = self.one(selector).get_property("value")
        assert isinstance(value, str)
        return value

    def write(self, selector: str, text: str) -> None:
        self.one(selector).clear()
        self.one(selector).send_keys(text)

    def say(self, text: str) -> None:
        self.write("#prompt", text)
        self.one("#send").click()

    def idle(self) -> bool:
        return not self.css(".streaming") and self.one("#send").is_displayed()

    def until(self, condition: Callable[[], T], seconds: float = 30) -> T:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"it did not happen; the page says: {self.text('body')}"
            time.sleep(0.02)
        return found
