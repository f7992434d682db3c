"""Engines of the gateway's own: their configuration, their command line, their start and their failures."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.config import Secret
from headrace_llamacpp import EngineConfig, LlamacppConfig
from headrace_llamacpp.command import environment, find_program, serve_command
from headrace_llamacpp.server import params, parse

WRONG = [
    ({"model": " "}, "model: name a GGUF file"),
    ({"host": "a,b"}, "host: give one address"),
    ({"host": "/run/llama.sock"}, "host: give one address"),
    ({"alias": "a,b"}, "alias: give one name"),
    ({"batch_size": 64, "ubatch_size": 128}, "ubatch_size: 128 is more than batch_size, 64"),
    ({"cache_type_v": "q8_0", "flash_attn": "off"}, "cache_type_v: q8_0 wants flash attention"),
    ({"args": ["-c", "5"]}, "args: -c has a key of its own: ctx_size"),
    ({"args": ["--port=9"]}, "args: --port has a key of its own: port"),
    ({"args": ["--models-dir", "x"]}, "args: with --models-dir the gateway does not find its engine"),
    ({"env": {"LLAMA_API_KEY": Secret("x")}}, "env: LLAMA_API_KEY has a key of its own: api_key"),
    ({"env": {"A B": Secret("x")}}, "env: 'A B' is no name of a variable"),
]


@pytest.mark.parametrize(("keys", "words"), WRONG, ids=lambda each: str(each)[:30])
def test_what_an_engine_cannot_be_is_refused(keys: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r".+") as error:
        EngineConfig(**{"model": "m.gguf", **keys})
    assert words in str(error.value)


@pytest.mark.parametrize("value", [True, "some", -1])
def test_layers_are_a_number_or_one_of_two_words(value: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"model": "m.gguf", "n_gpu_layers": value}, EngineConfig)


def test_two_engines_cannot_have_one_port() -> None:
    with pytest.raises(ValueError, match="a and b cannot all listen on port 8081"):
        LlamacppConfig(engines={"a": EngineConfig(model="m"), "b": EngineConfig(model="m")})


FULL = {
    "model": "/models/m.gguf",
    "alias": "small",
    "mmproj": "/models/eyes.gguf",
    "ctx_size": 8192,
    "parallel": 2,
    "n_gpu_layers": "all",
    "threads": 4,
    "batch_size": 512,
    "ubatch_size": 256,
    "flash_attn": "on",
    "cache_type_k": "q8_0",
    "cache_type_v": "q8_0",
    "pooling": "mean",
    "embeddings": True,
    "host": "0.0.0.0",
    "port": 9000,
    "args": ["--cache-reuse", "256"],
    "command": "/opt/llama-server",
}


def test_every_key_becomes_an_argument() -> None:
    engine = EngineConfig(**FULL)  # type: ignore[arg-type]
    assert serve_command(engine).shown() == (
        "/opt/llama-server --model /models/m.gguf --alias small --mmproj /models/eyes.gguf --ctx-size 8192 "
        "--parallel 2 --n-gpu-layers all --threads 4 --batch-size 512 --ubatch-size 256 --flash-attn on "
        "--cache-type-k q8_0 --cache-type-v q8_0 --pooling mean --embeddings --host 0.0.0.0 --port 9000 --metrics "
        "--no-webui --cache-reuse 256"
    )
    assert engine.url == "http://127.0.0.1:9000"


def test_what_is_left_out_is_llama_cpps_to_decide() -> None:
    argv = serve_command(EngineConfig(model="/models/big-00001-of-3.gguf", command="llama-server")).argv
    assert argv == (
        *("llama-server", "--model", "/models/big-00001-of-3.gguf", "--alias", "big-00001-of-3"),
        *("--host", "127.0.0.1", "--port", "8081", "--metrics", "--no-webui"),
    )


def test_secrets_are_in_the_environment_alone() -> None:
    engine = EngineConfig(model="m", api_key=Secret("sk-1"), env={"HF_TOKEN": Secret("hf-1")})
    command = serve_command(engine)
    assert environment(engine) == {"LLAMA_API_KEY": "sk-1", "HF_TOKEN": "hf-1"}
    assert command.shown().startswith('LLAMA_API_KEY="$LLAMA_API_KEY" HF_TOKEN="$HF_TOKEN" ')
    assert "sk-1" not in command.shown() + str(command.argv)


def test_a_program_on_the_path_goes_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(EngineConfig(model="m")) == [sys.executable, "-m", "headrace_llamacpp.server"]
    shutil.copy("/bin/true", tmp_path / "llama-server")
    assert find_program(EngineConfig(model="m")) == [str(tmp_path / "llama-server")]


def test_the_package_is_told_the_same(model: Path) -> None:
    import xllamacpp

    engine = EngineConfig(**{**FULL, "args": []})  # type: ignore[arg-type]
    argv = serve_command(engine).argv
    found = params(parse(argv[1:]), "sk-1")
    assert (found.model.path, found.model_alias, found.mmproj.path) == (
        "/models/m.gguf",
        {"small"},
        "/models/eyes.gguf",
    )
    assert (found.n_ctx, found.n_parallel, found.n_batch, found.n_ubatch) == (8192, 2, 512, 256)
    assert (found.n_gpu_layers, found.cpuparams.n_threads, found.cpuparams_batch.n_threads) == (-2, 4, 4)
    assert found.flash_attn_type == xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert found.cache_type_k == found.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    assert found.pooling_type == xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    assert (found.hostnames, found.port, found.api_keys) == (["0.0.0.0"], 9000, ["sk-1"])
    assert (found.embedding, found.endpoint_metrics, found.ui) == (True, True, False)


def test_an_engine_is_started_answers_and_is_ended(site: Any, kit: Any) -> None:
    site.write(alias="smol", ctx_size=4096, api_key="sk-engine")
    with site.up(slow_until="4 requests at the same time, of 4096 tokens each") as client:
        messages = [{"role": "user", "content": "hi"}]
        answer = client.post("/v1/chat/completions", json={"model": "chat", "messages": messages})
        started = site.started
        assert answer.json()["choices"][0]["message"]["content"] == f"smol of process {started['pid']}"
        assert started["env"]["LLAMA_API_KEY"] == "sk-engine"
        assert started["argv"][:6] == ["--model", str(site.model), "--alias", "smol", "--ctx-size", "4096"]
    assert "headrace: llamacpp small: 33/33 layers are on the GPU" in site.said
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", site.port)) != 0


FAILURES = {
    "memory": "out of GPU memory: lower n_gpu_layers",
    "kind": "this llama.cpp does not know future3",
    "cut": "the model's file is incomplete",
    "port": "another program has taken its port",
    "argument": "this llama-server knows no --no-such-option",
    "value": "llama-server refuses --pooling: invalid value",
    "cache": 'set flash_attn = "on"',
}


@pytest.mark.parametrize("mode", FAILURES)
def test_why_a_start_has_failed_is_told(site: Any, mode: str) -> None:
    site.write()
    site.mode.write_text(mode)
    done = site.run("up")
    assert done.returncode == 1
    assert FAILURES[mode] in done.stderr


def test_a_file_that_is_no_model_is_refused_before_anything_starts(site: Any) -> None:
    site.write(model=str(site.program))
    done = site.run("up")
    assert (done.returncode, "llama-server is no GGUF file" in done.stderr) == (1, True), done.stderr


def test_a_model_that_is_not_there_is_told(site: Any) -> None:
    site.write(model=str(site.folder / "none.gguf"))
    done = site.run("up")
    assert (done.returncode, "none.gguf cannot be read: No such file" in done.stderr) == (1, True), done.stderr


def test_a_port_that_is_taken_is_told(site: Any) -> None:
    site.write()
    with socket.create_server(("127.0.0.1", site.port)):
        done = site.run("up")
    assert (done.returncode, "another program listens there" in done.stderr) == (1, True), done.stderr


def test_the_command_of_an_engine_is_shown_without_its_secrets(site: Any) -> None:
    site.write(api_key="sk-engine")
    done = site.run("llamacpp", "command", "small")
    assert done.stdout.startswith('LLAMA_API_KEY="$LLAMA_API_KEY" FAKE_LLAMA="$FAKE_LLAMA" ')
    assert "sk-engine" not in done.stdout + done.stderr
    described = json.loads(site.run("llamacpp", "command", "small", "--json").stdout)
    assert described["argv"][0] == str(site.program)
    assert described["secrets"] == ["LLAMA_API_KEY", "FAKE_LLAMA"]


def test_an_engine_that_there_is_not_has_no_command(site: Any) -> None:
    site.write()
    done = site.run("llamacpp", "command", "large")
    assert (done.returncode, done.stderr) == (1, "Error: there is no engine 'large' (there are: small)\n")


def test_engines_are_listed(site: Any) -> None:
    site.write(alias="smol")
    (row,) = json.loads(site.run("llamacpp", "list", "--json").stdout)
    assert (row["name"], row["model"], row["answers"]) == ("small", "smol", False)


def test_an_argument_that_the_package_does_not_know_is_told(model: Path) -> None:
    command = [sys.executable, "-m", "headrace_llamacpp.server", "--model", "m", "--host", "h", "--port", "1"]
    done = subprocess.run([*command, "--cache-reuse", "5"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "unrecognized arguments: --cache-reuse 5" in done.stderr
