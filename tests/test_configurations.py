"""The configurations that people start from: each is checked, and does what its comments promise."""

from __future__ import annotations

import asyncio
import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.errors import ConfigError
from headrace.gateway import Gateway
from headrace.settings import load

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(CONF.glob("*.toml"))
LOCAL_URLS = {
    "vllm": "http://127.0.0.1:8000/v1",
    "ollama": "http://127.0.0.1:11434/v1",
    "llamacpp": "http://127.0.0.1:8080/v1",
    "textgen": "http://127.0.0.1:5000/v1",
}
"""Where each of these servers listens by default."""
OPENAI = {"OPENAI_API_KEY": "sk-mine"}
HELLO = [{"role": "user", "content": "hi"}]


def switched(environment: Mapping[str, str], tmp_path: Path) -> Gateway:
    """The gateway of switchable.toml in this environment."""
    return Gateway(load(CONF / "switchable.toml", {"HOME": str(tmp_path), **environment})).assemble()


def targets(gateway: Gateway) -> list[Any]:
    return list(gateway.models.find("default").targets)


def headrace(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(kit: Any) -> Iterator[Path]:
    with kit.short_folder() as folder:
        yield folder


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_configuration_passes_its_check(file: Path, folder: Path) -> None:
    done = headrace("config", "check", str(file), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("ok")


@pytest.mark.parametrize("provider", LOCAL_URLS)
def test_a_local_provider_is_chosen_by_name_alone(provider: str, tmp_path: Path) -> None:
    (target,) = targets(switched({"INFERENCE_PROVIDER": provider}, tmp_path))
    assert (target.name, target.base_url) == (provider, LOCAL_URLS[provider])
    assert (target.model, target.api_key) == (None, None)


@pytest.mark.parametrize("provider", LOCAL_URLS)
def test_a_local_provider_takes_its_url_and_model_from_the_environment(provider: str, tmp_path: Path) -> None:
    environment = {
        "INFERENCE_PROVIDER": provider,
        "LOCAL_INFERENCE_URL": "http://gpu:9999",
        "LOCAL_MODEL_NAME": "llama-8b",
    }
    (target,) = targets(switched(environment, tmp_path))
    assert (target.name, target.base_url, target.model) == (provider, "http://gpu:9999/v1", "llama-8b")


def test_openai_needs_its_key_alone(tmp_path: Path) -> None:
    (target,) = targets(switched({"INFERENCE_PROVIDER": "openai", **OPENAI}, tmp_path))
    assert (target.name, target.base_url) == ("openai", "https://api.openai.com/v1")
    assert target.api_key.reveal() == "sk-mine"


def test_openai_takes_another_address_from_the_environment(tmp_path: Path) -> None:
    environment = {"INFERENCE_PROVIDER": "openai", "OPENAI_API_BASE": "https://eu.example.com/v1", **OPENAI}
    (target,) = targets(switched(environment, tmp_path))
    assert target.base_url == "https://eu.example.com/v1"


def test_openai_without_a_key_is_refused_with_the_variables_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        switched({"INFERENCE_PROVIDER": "openai"}, tmp_path)


def test_with_nothing_set_it_is_vllm_on_this_machine(tmp_path: Path) -> None:
    assert [target.name for target in targets(switched({}, tmp_path))] == ["vllm"]


def test_an_unknown_provider_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lamacpp.*ollama"):
        switched({"INFERENCE_PROVIDER": "lamacpp"}, tmp_path)


@pytest.mark.parametrize("enabled", ["true", "1", "yes", "on"])
def test_the_fallback_chain_follows_in_its_order(enabled: str, tmp_path: Path) -> None:
    environment = {
        "INFERENCE_PROVIDER": "ollama",
        "ENABLE_FALLBACK": enabled,
        "FALLBACK_CHAIN": "llamacpp, vllm ,openai",
        **OPENAI,
    }
    names = [target.name for target in targets(switched(environment, tmp_path))]
    assert names == ["ollama", "llamacpp", "vllm", "openai"]


@pytest.mark.parametrize("environment", [{"ENABLE_FALLBACK": "false"}, {}], ids=["disabled", "not enabled"])
def test_without_its_switch_the_chain_is_not_used(environment: dict[str, str], tmp_path: Path) -> None:
    gateway = switched({"INFERENCE_PROVIDER": "ollama", "FALLBACK_CHAIN": "openai", **environment}, tmp_path)
    assert [target.name for target in targets(gateway)] == ["ollama"]


def test_a_provider_that_is_also_in_the_chain_is_asked_once(tmp_path: Path) -> None:
    environment = {"INFERENCE_PROVIDER": "ollama", "ENABLE_FALLBACK": "true", "FALLBACK_CHAIN": "ollama,vllm"}
    assert [target.name for target in targets(switched(environment, tmp_path))] == ["ollama", "vllm"]


def test_health_checks_take_their_times_from_the_environment(tmp_path: Path) -> None:
    gateway = switched({"HEALTH_CHECK_INTERVAL": "2.5", "HEALTH_CHECK_TIMEOUT": "1"}, tmp_path)
    assert (gateway.config.health.interval, gateway.config.health.timeout) == (2.5, 1.0)


def test_a_time_that_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[health\] interval"):
        switched({"HEALTH_CHECK_INTERVAL": "soon"}, tmp_path)


@pytest.fixture
def served(folder: Path, kit: Any, launch: Callable[..., Any]) -> Callable[..., Any]:
    """`headrace up` with a copy of a shipped configuration that listens on a free port; an HTTP client with a key."""

    @contextmanager
    def serve(name: str, *changes: tuple[str, str], **environment: str) -> Iterator[httpx.Client]:
        text = (CONF / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (folder / name).write_text(f'[server]\nlisten = "127.0.0.1:{kit.free_port()}"\n{text}')
        made = headrace("--config", name, "keys", "create", "tester", cwd=folder, **environment)
        assert made.returncode == 0, made.stderr
        with launch(folder, "--config", name, "up", environment=environment) as launched:
            url = launched.ready()["url"].removesuffix("/v1")
            headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
                yield client

    return serve


def chat(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"model": model, "messages": HELLO, **fields})


def asked(fake: Any) -> list[tuple[dict[str, str], Any]]:
    """The chats a backend was asked for: headers and fields."""
    return [(headers, json.loads(body)) for path, headers, body in fake.requests if "chat" in path]


def test_minimal_serves_a_request(served: Callable[..., Any], stack: Any) -> None:
    with served("minimal.toml", ("http://127.0.0.1:8000", stack.fake.url)) as client:
        answer = chat(client, "chat")
    assert answer.json()["choices"][0]["message"]["content"] == "hi"
    assert [fields["model"] for _, fields in asked(stack.fake)] == ["my-model"]


def test_minimal_refuses_strangers(served: Callable[..., Any], stack: Any) -> None:
    with served("minimal.toml", ("http://127.0.0.1:8000", stack.fake.url)) as client:
        client.headers.clear()
        assert chat(client, "chat").status_code == 401


def test_switched_to_a_local_server_it_streams_from_there(served: Callable[..., Any], stack: Any) -> None:
    environment = {
        "INFERENCE_PROVIDER": "llamacpp",
        "LOCAL_INFERENCE_URL": stack.fake.url,
        "LOCAL_MODEL_NAME": "llama-8b",
    }
    with served("switchable.toml", **environment) as client:
        answer = chat(client, "default", stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    ((headers, fields),) = asked(stack.fake)
    assert fields["model"] == "llama-8b"
    assert "authorization" not in headers


def test_switched_to_openai_it_sends_the_key(served: Callable[..., Any], stack: Any) -> None:
    environment = {"INFERENCE_PROVIDER": "openai", "OPENAI_API_BASE": stack.fake.url, **OPENAI}
    with served("switchable.toml", **environment) as client:
        assert chat(client, "default").status_code == 200
    ((headers, _),) = asked(stack.fake)
    assert headers["authorization"] == "Bearer sk-mine"


def test_a_dead_provider_is_stood_in_for_by_the_chain(served: Callable[..., Any], stack: Any, kit: Any) -> None:
    environment = {
        "INFERENCE_PROVIDER": "ollama",
        "LOCAL_INFERENCE_URL": f"http://127.0.0.1:{kit.free_port()}",
        "ENABLE_FALLBACK": "true",
        "FALLBACK_CHAIN": "openai",
        "OPENAI_API_BASE": stack.fake.url,
        **OPENAI,
    }
    with served("switchable.toml", **environment) as client:
        answer = chat(client, "default", stream=True)
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert len(asked(stack.fake)) == 1


def test_without_the_chain_a_dead_provider_is_an_error(served: Callable[..., Any], stack: Any) -> None:
    with served("switchable.toml", INFERENCE_PROVIDER="ollama", LOCAL_INFERENCE_URL=stack.fake.url) as client:
        stack.fake.status = 500
        answer = chat(client, "default")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


# --- engines of the gateway's own ---

NGINX = ('[plugins.nginx]\nport = { env = "HEADRACE_PORT", default = 8443 }\n', "")


@pytest.fixture
def own_vllm(folder: Path, kit: Any) -> tuple[tuple[str, str], dict[str, str]]:
    """A program `vllm` that stands in for vLLM: the change to a configuration, and the environment it is found by. It
    fails if the file `mode` says how."""
    stand_in = kit.repository / "plugins" / "vllm" / "tests" / "fake_vllm.py"
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {stand_in} "$@"\n')
    program.chmod(0o755)
    port = kit.free_port()
    found = {"PATH": f"{program.parent}:/usr/bin:/bin", "FAKE_VLLM": str(folder / "mode"), "VLLM_MODEL": "tiny"}
    return ("port = 8000", f"port = {port}"), found


def started(folder: Path) -> Any:
    """How the stand-in was started."""
    (noted,) = folder.glob("mode.*.start.json")
    return json.loads(noted.read_text())


def test_vllm_is_started_over_two_gpus_and_answers(
    served: Callable[..., Any], folder: Path, own_vllm: tuple[Any, dict[str, str]]
) -> None:
    change, environment = own_vllm
    with served("vllm-tp2.toml", NGINX, change, **environment) as client:
        answer = chat(client, "chat").json()["choices"][0]["message"]["content"]
    given = started(folder)
    assert answer == f"process {given['pid']}"
    assert given["env"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert given["argv"][:2] == ["serve", "tiny"]
    assert given["argv"][given["argv"].index("--tensor-parallel-size") + 1] == "2"


def test_a_gpu_of_ones_own_answers_first(
    served: Callable[..., Any], folder: Path, own_vllm: tuple[Any, dict[str, str]], kit: Any
) -> None:
    change, environment = own_vllm
    with (
        kit.fake_backend() as cloud,
        served("hybrid.toml", NGINX, change, OPENAI_API_BASE=cloud.url, **environment, **OPENAI) as client,
    ):
        answer = chat(client, "chat").json()["choices"][0]["message"]["content"]
    assert answer == f"process {started(folder)['pid']}"
    assert asked(cloud) == []


def test_where_the_gpu_is_out_of_memory_the_cloud_answers(
    served: Callable[..., Any], folder: Path, own_vllm: tuple[Any, dict[str, str]], kit: Any
) -> None:
    change, environment = own_vllm
    (folder / "mode").write_text("memory")
    with (
        kit.fake_backend() as cloud,
        served("hybrid.toml", NGINX, change, OPENAI_API_BASE=cloud.url, **environment, **OPENAI) as client,
    ):
        assert chat(client, "chat").status_code == 200
        told = (folder / "stderr.txt").read_text()
    assert "out of GPU memory" in told
    assert "going on without it" in told
    ((headers, fields),) = asked(cloud)
    assert (headers["authorization"], fields["model"]) == ("Bearer sk-mine", "gpt-4o-mini")


# --- Ollama ---


@pytest.fixture
def ollama(kit: Any) -> Iterator[Any]:
    """A stand-in for Ollama, which runs beside the test."""
    found: list[Any] = []
    ready, over = threading.Event(), threading.Event()

    async def run() -> None:
        stand_in = runpy.run_path(str(kit.repository / "plugins" / "ollama" / "tests" / "fake_ollama.py"))
        async with stand_in["FakeOllama"]() as fake:
            found.append(fake)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        over.set()
        thread.join(10)


def test_ollama_is_asked_with_what_its_table_says(served: Callable[..., Any], ollama: Any) -> None:
    with served("ollama.toml", OLLAMA_URL=ollama.url) as client:
        answer = chat(client, "chat", stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    (fields,) = [fields for _, path, _, fields in ollama.requests if path == "/api/chat"]
    assert (fields["model"], fields["options"], fields["keep_alive"]) == ("llama3.2", {"num_ctx": 8192}, "30m")


def test_ollama_embeds_with_a_model_of_its_own(served: Callable[..., Any], ollama: Any) -> None:
    with served("ollama.toml", OLLAMA_URL=ollama.url) as client:
        answer = client.post("/v1/embeddings", json={"model": "embed", "input": ["a", "b"]})
    assert [len(each["embedding"]) for each in answer.json()["data"]] == [4, 4]


# --- engines of every kind ---


def test_several_engines_share_the_work_whatever_model_clients_were_made_for(
    served: Callable[..., Any], ollama: Any, kit: Any
) -> None:
    with kit.fake_backend() as vllm, kit.fake_backend() as llama:
        urls = {"VLLM_URL": vllm.url, "LLAMACPP_URL": llama.url, "OLLAMA_URL": ollama.url}
        with served("multi-engine.toml", NGINX, **urls) as client:
            answers = [chat(client, name, max_tokens=9000) for name in ("chat", "gpt-4o", "claude-opus-4")]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        sent = [fields for _, fields in (*asked(vllm), *asked(llama))]
    assert len(sent) == 3
    assert {fields["max_tokens"] for fields in sent} == {8192}


def test_a_client_of_anthropic_is_answered_by_ollama_where_all_else_is_gone(
    served: Callable[..., Any], ollama: Any, kit: Any
) -> None:
    gone = f"http://127.0.0.1:{kit.free_port()}"
    with served("multi-engine.toml", NGINX, VLLM_URL=gone, LLAMACPP_URL=gone, OLLAMA_URL=ollama.url) as client:
        asked = {"model": "claude-opus-4", "messages": HELLO, "max_tokens": 20}
        answer = client.post("/v1/messages", json=asked, headers={"anthropic-version": "2023-06-01"})
    assert (answer.status_code, answer.json()["type"]) == (200, "message")
    assert answer.json()["content"][0]["type"] == "text"
