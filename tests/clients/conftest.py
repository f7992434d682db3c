"""Clients that people use: the node package, and a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NPM_OPTIONS = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")


@pytest.fixture(scope="session")
def node_folder(kit: Any) -> Path:
    """A folder outside the source tree with the pinned `openai` package and our scripts in it."""
    _, npm = kit.need("node")
    folder: Path = kit.repository / ".headrace" / "npm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, folder)
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]["openai"]
    installed = folder / "node_modules" / "openai" / "package.json"
    if not installed.is_file() or json.loads(installed.read_text())["version"] != wanted:
        shutil.copy(HERE / "package.json", folder)
        done = subprocess.run([npm, "install", *NPM_OPTIONS], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"npm cannot install openai {wanted}: {done.stderr}"
    return folder


@pytest.fixture
def node(kit: Any, node_folder: Path, front: Any) -> Callable[..., Any]:
    """Run one of our scripts against the stack, through nginx over TLS; returns the JSON it printed."""
    program, _ = kit.need("node")
    stack = front.stack
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(stack.ca), "URL": stack.url, "KEY": stack.key}

    def run(script: str, *arguments: str) -> Any:
        done = subprocess.run(
            [program, script, *arguments],
            cwd=node_folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def chromium(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for the whole run. It takes any certificate: what is tested here is what pages can do."""
    program, chromedriver = kit.need("chromium")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--ignore-certificate-errors",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


class _Page(BaseHTTPRequestHandler):
    """Serves page.html at every path."""

    def do_GET(self) -> None:
        body = (HERE / "page.html").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="session")
def page_url(page_port: int) -> Iterator[str]:
    """A web page of another origin than the gateway's, one that the stack's configuration lets in."""
    with serving(page_port) as url:
        yield url


@pytest.fixture(scope="session")
def stranger_url() -> Iterator[str]:
    """The same page from an origin that the configuration does not name."""
    with serving(0) as url:
        yield url


@contextlib.contextmanager
def serving(port: int) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", port), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(30)
