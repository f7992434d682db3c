"""No key, no prompt and no answer in any log, whatever happened to the request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PROMPT = "xylophone-marmalade-7391"
"""A marker that no log can have from elsewhere."""
ANSWER = "quicksilver-bassoon-2846"
CHAT = "/v1/chat/completions"
Since = Callable[[], dict[str, bytes]]


def ask(text: str = PROMPT, **fields: Any) -> dict[str, Any]:
    return {
        "model": "fake",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0,
        **fields,
    }


def whole(client: httpx.Client, stack: Any) -> list[str]:
    answer = client.post(CHAT, json=ask(f"Repeat this: {PROMPT}", model=stack.model)).json()
    return [answer["choices"][0]["message"]["content"]]


def streamed(client: httpx.Client, stack: Any) -> list[str]:
    text = ""
    with client.stream("POST", CHAT, json=ask(f"Tell of {PROMPT}.", model=stack.model, stream=True)) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    return [text]


def failed_at_the_backend(client: httpx.Client, stack: Any) -> list[str]:
    stack.fake.status = 400
    stack.fake.error_body = json.dumps({"error": {"message": f"bad: {PROMPT} {ANSWER}"}}).encode()
    client.post(CHAT, json=ask())
    return []


def cut(client: httpx.Client, stack: Any) -> list[str]:
    stack.fake.cut_after = 1
    client.post(CHAT, json=ask(stream=True))
    return []


def refused(client: httpx.Client, stack: Any) -> list[str]:
    client.post(CHAT, json=ask(temperature=PROMPT))
    client.post(CHAT, json={**ask(), "messages": PROMPT})
    client.post(CHAT, content=b'{"model": "fake", ' + PROMPT.encode())
    client.post(f"/v1/nothing?api_key={stack.key}&prompt={PROMPT}")
    client.get(f"/v1/models?key={stack.key}")
    return []


def with_keys_everywhere(client: httpx.Client, stack: Any) -> list[str]:
    headers = {"X-API-Key": stack.key, "Cookie": f"key={stack.key}", "Referer": f"https://x/?{stack.key}"}
    client.post(CHAT, json=ask(), headers=headers)
    client.get("/v1/models", headers={"User-Agent": PROMPT, "Authorization": f"Basic {stack.key}"})
    client.get("/v1/models", headers={"Authorization": "Bearer hr-" + ANSWER})
    return []


@pytest.fixture
def logged_since(stack: Any) -> Since:
    """What every file of the log directory, and stderr, got since the test began, by file name."""

    def files() -> list[Path]:
        return [*stack.logs.rglob("*"), stack.launched.stderr_file]

    before = {file: file.stat().st_size for file in files()}
    return lambda: {file.name: file.read_bytes()[before.get(file, 0) :] for file in files() if file.is_file()}


@pytest.mark.parametrize("talk", [whole, streamed, failed_at_the_backend, cut, refused, with_keys_everywhere])
def test_nothing_of_what_was_said_is_logged(
    route: Any, kit: Any, logged_since: Since, talk: Callable[[httpx.Client, Any], list[str]]
) -> None:
    stack = route.stack
    with route.client() as client:
        answers = talk(client, stack)
    with route.client() as client:
        marker = client.post(CHAT, json=ask("the last one"), headers={"X-Request-ID": f"last-{talk.__name__}"})
    last = f"last-{talk.__name__}".encode()
    assert marker.headers["x-request-id"].encode() == last
    for name in ("requests.log", "access.log") if route.name == "nginx" else ("requests.log",):
        kit.until(lambda name=name: last in logged_since()[name], f"the last request's line in {name}")
    logged = b"\n".join(logged_since().values()).decode("utf-8", "replace")
    assert stack.key not in logged
    assert "sk-upstream-secret" not in logged
    for text in (PROMPT, ANSWER, *answers):
        assert text.strip()
        assert text not in logged
        assert json.dumps(text)[1:-1] not in logged


def test_the_key_is_not_in_any_file_but_its_own(stack: Any, kit: Any) -> None:
    holding = [
        file.relative_to(stack.state).as_posix()
        for file in stack.state.rglob("*")
        if file.is_file() and stack.key.encode() in file.read_bytes()
    ]
    assert holding == ["development.key"]


def test_the_key_is_not_on_any_command_line(stack: Any, kit: Any) -> None:
    for pid in kit.process_tree(stack.launched.child.pid):
        assert stack.key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_is_kept_is_readable_by_its_owner_alone(stack: Any) -> None:
    public = ("ca.pem",)
    open_to_others = [
        file.relative_to(stack.state).as_posix()
        for file in stack.state.rglob("*")
        if file.is_file()
        and file.name not in public
        and file.stat().st_mode & 0o077
        and not shielded(file, stack.state)
    ]
    assert open_to_others == []


def shielded(file: Path, state: Path) -> bool:
    """Whether a directory on the way to it keeps others out."""
    return any(not parent.stat().st_mode & 0o077 for parent in file.parents if parent.is_relative_to(state))
