"""`headrace vllm command` and `list`: how engines are started, and whether they answer."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

HEAD = "set these before, they are secrets: "


def lines(site: Any, *arguments: str) -> list[str]:
    done = site.run("vllm", *arguments)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).splitlines()


def test_an_engine_with_nothing_but_a_model_is_started_with_nothing_but_that(site: Any) -> None:
    site.write(site.engine("gpu", 8000, drain=20))
    (line,) = lines(site, "command", "gpu")
    assert shlex.split(line)[1:] == [
        *(str(site.vllm), "serve", "m", "--host", "127.0.0.1", "--port", "8000", "--shutdown-timeout", "20")
    ]


def test_every_key_becomes_an_argument(site: Any) -> None:
    keys = {
        "served_model_name": "small",
        "host": "0.0.0.0",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.5,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "dtype": "half",
        "quantization": "awq",
        "kv_cache_dtype": "fp8",
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "lora_modules": {"style": "/loras/style", "law": "/loras/law"},
        "sleep_mode": True,
        "args": ["--seed", "7"],
    }
    site.write(site.engine("gpu", 8000, **keys))
    (line,) = lines(site, "command", "gpu")
    assert line.split(" serve ")[1] == (
        "m --served-model-name small --host 0.0.0.0 --port 8000 --tensor-parallel-size 2 --pipeline-parallel-size 2 "
        "--max-model-len 4096 --gpu-memory-utilization 0.5 --max-num-seqs 8 --max-num-batched-tokens 2048 --dtype half "
        "--quantization awq --kv-cache-dtype fp8 --enable-chunked-prefill --no-enable-prefix-caching --enable-lora "
        "--lora-modules style=/loras/style law=/loras/law --enable-sleep-mode --seed 7"
    )


def test_a_command_can_be_pasted_into_a_shell_whatever_is_in_it(site: Any) -> None:
    site.write(site.engine("gpu", 8000, model="/models/it's $HOME", devices=[1], command="/bin/echo"))
    (line,) = lines(site, "command", "gpu")
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert said == "serve /models/it's $HOME --host 127.0.0.1 --port 8000\n"
    assert line.startswith("CUDA_VISIBLE_DEVICES=1 ")


def test_secrets_are_named_and_not_shown(site: Any) -> None:
    site.write(site.engine("gpu", 8000, api_key="sk-mine", env={"HF_TOKEN": "hf-mine"}))
    done = site.run("vllm", "command", "gpu")
    assert "mine" not in done.stdout + done.stderr
    assert done.stdout.startswith('VLLM_API_KEY="$VLLM_API_KEY" FAKE_VLLM="$FAKE_VLLM" HF_TOKEN="$HF_TOKEN" ')
    assert done.stderr == f"{HEAD}VLLM_API_KEY, FAKE_VLLM, HF_TOKEN\n"


def test_for_scripts_it_is_one_object(site: Any) -> None:
    site.write(site.engine("gpu", 8000, devices=[1], runtime_lora=True))
    found = json.loads("".join(lines(site, "command", "gpu", "--json")))
    assert found["argv"][1:] == ["serve", "m", "--host", "127.0.0.1", "--port", "8000", "--enable-lora"]
    assert found["env"] == {"CUDA_VISIBLE_DEVICES": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    assert found["secrets"] == ["FAKE_VLLM"]


def test_an_environment_with_vllm_is_named_by_its_python(site: Any) -> None:
    site.write(site.engine("gpu", 8000, command="", python="~/vllm/bin/python"))
    found = json.loads("".join(lines(site, "command", "gpu", "--json")))
    assert found["argv"][0].endswith("/vllm/bin/python")
    assert found["argv"][1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]


def test_a_model_in_the_home_directory_is_found_there(site: Any) -> None:
    site.write(site.engine("gpu", 8000, model="~/models/m", lora_modules={"style": "~/style"}))
    done = site.run("vllm", "command", "gpu", HOME="/home/me")
    assert " serve /home/me/models/m " in done.stdout
    assert " style=/home/me/style" in done.stdout


def test_a_vllm_on_the_path_is_found(site: Any) -> None:
    site.write(site.engine("gpu", 8000, command=""))
    done = site.run("vllm", "command", "gpu", PATH=f"{site.folder}:/usr/bin:/bin")
    assert f" {site.vllm} serve m " in done.stdout


def test_several_machines_get_a_command_each(site: Any) -> None:
    site.write(
        site.engine("big", 8000, nodes=2, tensor_parallel_size=4, pipeline_parallel_size=2, devices=[0, 1, 2, 3])
    )
    head, serve = lines(site, "command", "big", "--node", "head")
    assert head == 'CUDA_VISIBLE_DEVICES=0,1,2,3 FAKE_VLLM="$FAKE_VLLM" ray start --head --port=6379'
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2 --distributed-executor-backend ray" in serve
    (worker,) = lines(site, "command", "big", "--node", "worker", "--head", "gpu1")
    assert worker.endswith(" ray start --address=gpu1:6379 --block")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("nothing",), 1, "there is no engine 'nothing' (there are: gpu)"),
        (("gpu", "--node", "worker"), 2, "--node worker needs --head HOST"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(site: Any, arguments: tuple[str, ...], status: int, told: str) -> None:
    site.write(site.engine("gpu", 8000))
    done = site.run("vllm", "command", *arguments)
    assert done.returncode == status
    assert told in done.stderr.splitlines()[-1]


def test_the_list_says_which_engines_answer(site: Any, start: Callable[[], Any], kit: Any) -> None:
    port = kit.free_port()
    site.write(
        site.engine("gpu", port),
        '[backends.gpu]\nprovider = "vllm"\noptions = { engine = "gpu" }\n[models.chat]\ntargets = ["gpu"]',
    )
    assert [row["answers"] for row in json.loads("".join(lines(site, "list", "--json")))] == [False]
    start().ready()
    (row,) = json.loads("".join(lines(site, "list", "--json")))
    assert (row["name"], row["model"], row["gpus"], row["answers"]) == ("gpu", "m", 1, True)
    assert row["url"] == f"http://127.0.0.1:{port}"


def test_without_engines_the_list_says_how_to_have_one(site: Any) -> None:
    site.write("[plugins.vllm]")
    assert "[plugins.vllm.engines.NAME]" in site.run("vllm", "list").stderr
