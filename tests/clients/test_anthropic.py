"""Anthropic's packages for Python and node: backends with chats alone answer their Messages, through nginx over TLS and
straight to the core."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

STORY: Any = [{"role": "user", "content": "Write a short story about the sea."}]
SURE = {"temperature": 0}
"""No more a parameter of the client's own."""
NODE_PACKAGE = {"@anthropic-ai/sdk": "1.12.0"}
NODE_SCRIPT = """
import Anthropic from "@anthropic-ai/sdk";

const [model] = process.argv.slice(2);
const options = { baseURL: process.env.URL, apiKey: process.env.KEY, maxRetries: 0 };
const messages = [{ role: "user", content: "Write a short story about the sea." }];
const asked = { model, max_tokens: 12, temperature: 0, messages };
const client = new Anthropic(options);
const pieces = [];
const stream = client.messages.stream(asked).on("text", (text) => pieces.push(text));
const message = await stream.finalMessage();
const whole = await client.messages.create(asked);
const counted = await client.messages.countTokens({ model, messages });
const stranger = new Anthropic({ ...options, apiKey: "hr-wrong" });
const error = await stranger.messages.create(asked).catch((error) => error);
console.log(JSON.stringify({
  pieces, message, whole, counted, error: { name: error.constructor.name, status: error.status, type: error.type },
}));
"""


def way(route: Any) -> dict[str, Any]:
    if route.name == "core":
        return {"uds": str(route.stack.core_socket), "verify": False}
    return {"verify": route.stack.tls()}


@pytest.fixture
def sdk(route: Any) -> Callable[..., anthropic.Anthropic]:
    """Anthropic's client as people make it, but for the way it takes."""

    def make(**credentials: str) -> anthropic.Anthropic:
        own = anthropic.DefaultHttpxClient(transport=httpx2.HTTPTransport(**way(route)))
        given = credentials or {"api_key": route.stack.key}
        return anthropic.Anthropic(base_url=route.origin, http_client=own, max_retries=0, **given)  # type: ignore[arg-type]

    return make


@pytest.fixture
def client(sdk: Any) -> Any:
    with sdk() as client:
        yield client


def said(caught: Any) -> Any:
    """The body of the error that was raised."""
    return caught.value.body


def test_a_whole_answer_of_the_real_model(client: Any, stack: Any) -> None:
    answer = client.messages.create(model=stack.model, messages=STORY, max_tokens=12, extra_body=SURE)
    assert (answer.type, answer.role, answer.content[0].type) == ("message", "assistant", "text")
    assert answer.content[0].text.strip()
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= 12


def test_a_stream_of_the_real_model(client: Any, stack: Any) -> None:
    whole = client.messages.create(model=stack.model, messages=STORY, max_tokens=12, extra_body=SURE)
    with client.messages.stream(model=stack.model, messages=STORY, max_tokens=12, extra_body=SURE) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 3
    assert "".join(pieces) == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == whole.usage.input_tokens + (
        whole.usage.cache_read_input_tokens or 0
    )


def test_the_system_prompt_and_the_conversation_reach_the_backend(client: Any, stack: Any) -> None:
    conversation = [*STORY, {"role": "assistant", "content": "Once."}, {"role": "user", "content": "Longer!"}]
    client.messages.create(model="fake", max_tokens=12, system="Be brief.", messages=conversation)
    body = json.loads(next(each[2] for each in stack.fake.requests if each[0].endswith("/chat/completions")))
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["max_tokens"] == 12


@pytest.mark.parametrize("credential", ["api_key", "auth_token"])
def test_a_key_is_known_in_either_header(sdk: Any, stack: Any, credential: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with sdk(**{credential: stack.key}) as client:
        assert client.messages.create(model="fake", max_tokens=9, messages=STORY).content[0].text == "hi"


@pytest.mark.parametrize("credential", ["api_key", "auth_token"])
def test_a_wrong_key_is_its_authentication_error(sdk: Any, credential: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with sdk(**{credential: "hr-wrong"}) as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(model="fake", max_tokens=9, messages=STORY)
    assert said(caught)["error"]["type"] == "authentication_error"


def test_an_unknown_model_is_its_not_found_error(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="claude-99", max_tokens=9, messages=STORY)
    assert said(caught)["error"]["type"] == "not_found_error"
    assert said(caught)["request_id"]


def test_a_tool_of_anthropics_own_is_its_bad_request_error(client: Any) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        client.messages.create(model="fake", max_tokens=9, messages=STORY, tools=tools)


def test_a_prompt_longer_than_the_context_is_its_bad_request_error(client: Any, stack: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="2048"):
        client.messages.create(model=stack.model, max_tokens=9, messages=[{"role": "user", "content": "word " * 5000}])


@pytest.mark.parametrize(
    "status, raised, kind",
    [
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "overloaded_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (401, anthropic.InternalServerError, "api_error"),
    ],
)
def test_what_a_backend_fails_with_is_the_right_error(
    client: Any, stack: Any, status: int, raised: Any, kind: str
) -> None:
    stack.fake.status = status
    with pytest.raises(raised) as caught:
        client.messages.create(model="fake", max_tokens=9, messages=STORY)
    assert said(caught)["error"]["type"] == kind


def test_a_cut_stream_raises_after_what_came(client: Any, stack: Any) -> None:
    stack.fake.cut_after = 2
    texts = []
    with (
        pytest.raises(anthropic.APIStatusError, match="incomplete"),
        client.messages.stream(model="fake", max_tokens=9, messages=STORY) as stream,
    ):
        for text in stream.text_stream:
            texts.append(text)
    assert texts == ["t0 ", "t1 "]


def test_leaving_a_stream_closes_the_backends_connection(client: Any, stack: Any, kit: Any) -> None:
    stack.fake.chunks, stack.fake.pause = 1000, 0.05
    with client.messages.stream(model="fake", max_tokens=9, messages=STORY) as stream:
        next(iter(stream.text_stream))
    kit.until(stack.fake.closed_early.is_set, "the close of the backend's connection")


def test_tokens_are_counted_by_the_backend_or_estimated_and_said_so(client: Any, stack: Any) -> None:
    stack.fake.counted = 23
    assert client.messages.count_tokens(model="fake", messages=STORY).input_tokens == 23
    stack.fake.counted = None
    answer = client.messages.with_raw_response.count_tokens(model="fake", messages=STORY)
    assert answer.headers["x-headrace-estimated"] == "true"
    assert answer.parse().input_tokens > 0


@pytest.fixture(scope="session")
def node_folder(kit: Any) -> Path:
    """A folder outside the source tree with the pinned package and the script in it."""
    _, npm = kit.need("node")
    folder: Path = kit.repository / ".headrace" / "npm-anthropic"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "talk.mjs").write_text(NODE_SCRIPT)
    described = json.dumps({"private": True, "type": "module", "dependencies": NODE_PACKAGE})
    manifest = folder / "package.json"
    if not (folder / "node_modules").is_dir() or manifest.read_text() != described:
        manifest.write_text(described)
        command = [
            npm,
            "install",
            "--no-package-lock",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_node_client_streams_asks_counts_and_fails(kit: Any, node_folder: Path, front: Any) -> None:
    program, _ = kit.need("node")
    stack = front.stack
    own = {"NODE_EXTRA_CA_CERTS": str(stack.ca), "URL": front.origin, "KEY": stack.key}
    command = [program, "talk.mjs", stack.model]
    done = subprocess.run(
        command, cwd=node_folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    text = found["whole"]["content"][0]["text"]
    assert "".join(found["pieces"]) == found["message"]["content"][0]["text"] == text
    assert found["counted"]["input_tokens"] > 5
    assert found["error"] == {"name": "AuthenticationError", "status": 401, "type": "authentication_error"}
