"""A plugin of a third party: its wheel beside the core, enabled by one table, harmless while it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ASK = {"model": "polly", "messages": [{"role": "user", "content": "pieces of eight"}]}
WITH = """
[server]
listen = "127.0.0.1:{port}"
anonymous = true
[models]
polly = {{ targets = [{{ provider = "parrot" }}] }}
[plugins.parrot]
{more}
"""
WITHOUT = """
[server]
listen = "127.0.0.1:{port}"
anonymous = true
"""


@pytest.fixture
def serving(third_party: Any, launch: Callable[..., Any], folder: Path, kit: Any) -> Callable[..., Any]:
    """The fresh environment's own `headrace up`; gives an HTTP client for it."""

    @contextmanager
    def serve(text: str, more: str = "", **environment: str) -> Iterator[httpx.Client]:
        config = folder / "headrace.toml"
        config.write_text(text.format(port=kit.free_port(), more=more))
        arguments = ("-c", str(config), "up")
        with launch(folder, *arguments, environment=environment, python=third_party.python) as launched:
            url = launched.ready()["url"].removesuffix("/v1")
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                yield client

    return serve


def words(client: httpx.Client) -> list[str]:
    """What a streamed answer says, word by word."""
    with client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    return [delta["content"] for delta in deltas if delta]


def test_it_serves_a_streamed_request(serving: Callable[..., Any]) -> None:
    with serving(WITH) as client:
        assert words(client) == ["pieces", "of", "eight"]


def test_its_hooks_run(serving: Callable[..., Any]) -> None:
    with serving(WITH, "loud = true") as client:
        assert words(client) == ["PIECES", "OF", "EIGHT"]
        answer = client.post("/v1/chat/completions", json=ASK)
    assert answer.json()["choices"][0]["message"]["content"] == "pieces of eight"
    assert answer.headers["x-parrot"] == "polly"


def test_it_is_listed_with_its_version(third_party: Any, folder: Path) -> None:
    (folder / "headrace.toml").write_text("[plugins.parrot]\n")
    listed = json.loads(third_party.run("plugins", "--json", cwd=folder).stdout)
    assert "headrace-parrot" in json.dumps(listed)
    assert "1.2.3" in json.dumps(listed)


def test_enabled_it_is_imported(serving: Callable[..., Any], folder: Path) -> None:
    with serving(WITH, PARROT_TRACE=str(folder / "trace")):
        pass
    assert (folder / "trace").read_text() == "imported"


def test_absent_from_the_configuration_it_is_never_imported(serving: Callable[..., Any], folder: Path) -> None:
    with serving(WITHOUT, PARROT_TRACE=str(folder / "trace")) as client:
        assert client.get("/v1/models").json()["data"] == []
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("arguments", [("plugins",), ("hooks",), ("config", "check", "headrace.toml"), ("--help",)])
def test_parked_it_is_not_imported_by_any_command(third_party: Any, folder: Path, arguments: tuple[str, ...]) -> None:
    (folder / "headrace.toml").write_text("[plugins.parrot]\nenabled = false\n")
    done = third_party.run(*arguments, cwd=folder, PARROT_TRACE=str(folder / "trace"))
    assert done.returncode == 0, done.stderr
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("command", ["up", "serve"])
def test_broken_it_stops_the_start_with_its_name_and_reason(
    third_party: Any, folder: Path, kit: Any, command: str
) -> None:
    (folder / "headrace.toml").write_text(WITH.format(port=kit.free_port(), more=""))
    done = third_party.run(command, cwd=folder, PARROT_IS_ILL="yes")
    assert done.returncode == 1
    assert "parrot" in done.stderr
    assert "RuntimeError: the parrot is ill" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_but_absent_it_harms_nobody(serving: Callable[..., Any]) -> None:
    with serving(WITHOUT, PARROT_IS_ILL="yes") as client:
        assert client.get("/health").status_code == 200


def test_a_mistake_in_its_table_is_found_by_its_own_struct(third_party: Any, folder: Path) -> None:
    (folder / "headrace.toml").write_text("[plugins.parrot]\nlout = true\n")
    done = third_party.run("config", "check", "headrace.toml", cwd=folder)
    assert done.returncode == 1
    assert "[plugins.parrot] lout" in done.stderr
    assert "loud" in done.stderr
