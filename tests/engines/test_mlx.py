"""The provider `mlx` with a real MLX LM server on the CPU.

HEADRACE_MLX_PYTHON names the Python of an environment with `mlx[cpu]` 0.32 and `mlx-lm` 0.32 (350 MB), and
HEADRACE_MLX_MODEL a folder with a small model that it can load. Without either the tests are left out.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from headrace.providers import Health
from headrace.testing import Running, free_port, serve

PYTHON, MODEL = os.environ.get("HEADRACE_MLX_PYTHON", ""), os.environ.get("HEADRACE_MLX_MODEL", "")
pytestmark = pytest.mark.skipif(not (PYTHON and MODEL), reason="HEADRACE_MLX_PYTHON and HEADRACE_MLX_MODEL name none")
PATIENCE = 120.0
ASKED: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has loaded the model, and may not reach the hub."""
    port, home = free_port(), tmp_path_factory.mktemp("mlx")
    argv = [PYTHON, "-m", "mlx_lm", "server", "--model", str(Path(MODEL).resolve()), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert child.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.kill()
        child.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)
    return False


@contextlib.asynccontextmanager
async def gateway(server: str, model: str = "default_model") -> AsyncIterator[Running]:
    document = {
        "server": {"anonymous": True},
        "backends": {"b": {"provider": "mlx", "base_url": server, "model": model}},
        "models": {"m": {"targets": ["b"], "retry": {"rounds": 1}}},
        "plugins": {"mlx": {}},
    }
    async with serve(document) as running:
        yield running


@contextlib.asynccontextmanager
async def client(server: str, model: str = "default_model") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        gateway(server, model) as running,
        openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="x", max_retries=0, timeout=PATIENCE) as made,
    ):
        yield made


async def test_a_chat_is_answered(server: str) -> None:
    async with client(server) as asking:
        said = await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=4)
    assert said.choices[0].message.content
    assert said.usage is not None and said.usage.completion_tokens == 4


async def test_a_streamed_chat_says_what_a_whole_one_says(server: str) -> None:
    async with client(server) as asking:
        whole = await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=6, temperature=0)
        stream = await asking.chat.completions.create(
            model="m", messages=ASKED, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 6


async def test_a_text_in_a_list_is_continued(server: str) -> None:
    async with client(server) as asking:
        said = await asking.completions.create(model="m", prompt=["Once"], max_tokens=4)
    assert said.choices[0].finish_reason == "length"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], ""])
async def test_prompts_that_end_the_server_do_not_reach_it(server: str, prompt: Any) -> None:
    async with client(server) as asking:
        with pytest.raises(openai.BadRequestError):
            await asking.completions.create(model="m", prompt=prompt, max_tokens=1)
        assert (await asking.completions.create(model="m", prompt="Once", max_tokens=1)).choices


ENDING: list[Any] = [
    *(
        {"stop": [5]},
        {"seed": -1},
        {"temperature": 2**70},
        {"repetition_penalty": 1.1, "repetition_context_size": 2**70},
    ),
    {"frequency_penalty": 2**70},
    {"chat_template_kwargs": {"chat_template": ""}},
]


@pytest.mark.parametrize("fields", ENDING)
async def test_fields_that_end_the_server_do_not_reach_it(server: str, fields: Any) -> None:
    async with client(server) as asking:
        with pytest.raises(openai.BadRequestError):
            await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=1, extra_body=fields)
        assert (await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=1)).choices


async def test_a_bias_that_would_end_its_process_is_not_sent(server: str) -> None:
    async with client(server) as asking:
        said = await asking.chat.completions.with_raw_response.create(
            model="m", messages=ASKED, max_tokens=1, logit_bias={"99999999": 1}
        )
    assert said.headers["x-headrace-dropped"] == "logit_bias"


async def test_nulls_are_taken_as_left_out(server: str) -> None:
    fields = {"max_tokens": None, "temperature": None, "stop": None, "stream_options": None, "max_completion_tokens": 1}
    async with client(server) as asking:
        said = await asking.chat.completions.create(model="m", messages=ASKED, extra_body=fields)
    assert said.choices[0].finish_reason == "length"


async def test_its_errors_come_in_openai_s_form(server: str) -> None:
    async with client(server) as asking:
        with pytest.raises(openai.BadRequestError) as raised:
            await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=-1)
    assert raised.value.body == {
        "message": "max_tokens must be at least 1",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


async def test_a_model_that_it_has_not_is_an_error_in_its_own_words(server: str) -> None:
    async with client(server, "no/such") as asking:
        with pytest.raises(openai.NotFoundError) as raised:
            await asking.chat.completions.create(model="m", messages=ASKED, max_tokens=1)
    assert raised.value.type == "invalid_request_error"


async def test_it_is_well(server: str) -> None:
    async with gateway(server, "some/model") as running:
        (model,) = running.gateway.models
        assert await running.gateway.health_checks["mlx"].check(model.targets[0]) == Health(ok=True)
