"""`headrace gpu plan`."""

from __future__ import annotations

import json
import os
import shlex
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GIB = 1024**3
DESCRIBED = "--params 70B --layers 80 --hidden 8192 --heads 64 --kv-heads 8 --head-dim 128 --vocab 128256"
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


def planned(command: Any, line: str, **more: Any) -> Any:
    ended = command("plan", *shlex.split(line), "--json", **more)
    return json.loads(ended.stdout)


def test_what_fits_ends_with_0(command: Any) -> None:
    assert command("plan", "llama-3.1-8b", "--gpus", "24GiB").exit_code == 0


def test_what_does_not_fit_ends_with_1(command: Any) -> None:
    assert command("plan", "llama-3.1-70b", "--gpus", "32GiB,24GiB").exit_code == 1


def test_a_verdict_for_people(command: Any) -> None:
    lines = command("plan", "llama-3.1-70b", "--gpus", "32GiB,24GiB").output.splitlines()
    assert lines[0].startswith("Llama-3.1-70B-Instruct: 70.55 billion parameters, not quantized: 131.4 GiB of weights")
    assert lines[1].startswith("It does not fit. 24GiB: 65.7 GiB of weights")
    assert "What would fit:" in lines


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no-such-model",
        "llama-3.1-8b --gpus 24",
        "llama-3.1-8b --gpus 24GiB --tp 0",
        "llama-3.1-8b --gpus 24GiB --tp 2",
        "llama-3.1-8b --gpus 24GiB --tp 1.5",
        "llama-3.1-8b --gpus 24GiB --pp 33",
        "llama-3.1-8b --gpus 24GiB --context -1",
        "llama-3.1-8b --gpus 24GiB --context 200000",
        "llama-3.1-8b --gpus 24GiB --sequences 0",
        "llama-3.1-8b --gpus 24GiB --gpu-memory-utilization nan",
        "llama-3.1-8b --gpus 24GiB --gpu-memory-utilization 1.1",
        "llama-3.1-8b --gpus 24GiB --gpu-memory-utilization inf",
        "llama-3.1-8b --gpus 24GiB --quantization magic",
        "llama-3.1-8b --gpus 24GiB --quantization mxfp4",
        "llama-3.1-8b --gpus 24GiB --group-size 64",
        "llama-3.1-8b --gpus 24GiB --overhead NaN",
        "llama-3.1-8b --gpus 24GiB --sequences 9 --max-num-seqs 8",
        "llama-3.1-8b --gpus 24GiB --name 'a b'",
        "llama-3.1-8b --gpus 24GiB --layers 7",
        "--params 70B --gpus 24GiB",
        "--params nan --gpus 24GiB",
        f"{DESCRIBED} --gpus 24GiB --heads 63",
        "--params 1M --layers 80 --hidden 8192 --heads 64 --vocab 128256 --gpus 24GiB",
    ],
)
def test_a_wrong_call_ends_with_2_and_a_line(command: Any, line: str) -> None:
    ended = command("plan", *shlex.split(line))
    assert ended.exit_code == 2
    assert "Error: " in ended.output
    assert "Traceback" not in ended.output


def test_a_model_may_be_described_by_numbers(command: Any) -> None:
    found = planned(command, f"{DESCRIBED} --gpus 2x80GiB")
    assert (found["fits"], found["model"]["parameters"], found["model"]["kv_bytes_per_token"]) == (
        True,
        70 * 10**9,
        327_680,
    )
    assert abs(found["model"]["weights"] - 140 * 10**9) < 10**6


def test_a_directory_is_read(command: Any, a_model: Any, tmp_path: Path) -> None:
    folder = a_model(tmp_path / "my model", TINY)
    found = planned(command, f"{shlex.quote(str(folder))} --gpus 24GiB")
    assert (found["model"]["name"], found["model"]["weights_exact"], found["max_context"]) == ("my model", False, 4096)


def test_the_bytes_of_its_files_are_what_counts(command: Any, a_model: Any, tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", TINY, {"model.embed_tokens.weight": ("BF16", [1000, 64])})
    found = planned(command, f"{folder} --gpus 24GiB")
    assert (found["model"]["weights"], found["model"]["weights_exact"]) == (128_000, True)
    assert found["devices"][0]["weights"] == 128_000


def test_a_quantization_in_place_of_the_files_is_counted(command: Any, a_model: Any, tmp_path: Path) -> None:
    folder = a_model(tmp_path / "m", TINY, {"model.embed_tokens.weight": ("BF16", [1000, 64])})
    assert not planned(command, f"{folder} --gpus 24GiB --quantization fp8")["model"]["weights_exact"]


def test_the_flags_are_what_the_plan_reckons_with(command: Any) -> None:
    found = planned(command, "llama-3.1-8b --gpus 2x24GiB --tp 2 --context 8192 --kv-dtype fp8 --dtype float16")
    assert found["vllm"]["arguments"] == [
        *("--tensor-parallel-size", "2", "--max-model-len", "8192"),
        *("--max-num-seqs", str(found["max_num_seqs"]), "--max-num-batched-tokens", "2048"),
        *("--gpu-memory-utilization", "0.9", "--dtype", "float16", "--kv-cache-dtype", "fp8"),
    ]


def test_the_table_says_the_same(command: Any) -> None:
    found = planned(command, "llama-3.1-8b --gpus 24GiB --quantization fp8 --enforce-eager --name my.8b")
    assert tomllib.loads(found["toml"]) == {
        "plugins": {
            "vllm": {
                "engines": {
                    "my.8b": {
                        "model": "meta-llama/Llama-3.1-8B-Instruct",
                        "tensor_parallel_size": 1,
                        "max_model_len": found["max_context"],
                        "max_num_seqs": found["max_num_seqs"],
                        "max_num_batched_tokens": 2048,
                        "gpu_memory_utilization": 0.9,
                        "quantization": "fp8",
                        "args": ["--enforce-eager"],
                    }
                }
            }
        }
    }


def test_any_path_can_stand_in_the_table_and_in_the_shell(command: Any, a_model: Any, tmp_path: Path) -> None:
    folder = a_model(tmp_path / 'it\'s "a"\\model\x7f\n$(true)', TINY)
    ended = command("plan", str(folder), "--gpus", "24GiB")
    table = ended.stdout[ended.stdout.index("[plugins.vllm") :]
    (engine,) = tomllib.loads(table)["plugins"]["vllm"]["engines"].values()
    assert engine["model"] == str(folder)
    shell = ended.stdout[ended.stdout.index("vllm serve") : ended.stdout.index("\n\n[plugins")]
    assert shlex.split(shell)[2] == str(folder)


def test_a_checkpoint_that_must_be_quantized_is_not_named(command: Any) -> None:
    output = command("plan", "llama-3.1-70b", "--gpus", "2x24GiB", "--quantization", "awq").output
    assert "vllm serve MODEL " in output
    assert "MODEL: a checkpoint of it that is quantized so (awq)." in output


def test_without_a_gpu_it_says_so_and_what_would_do(command: Any) -> None:
    ended = command("plan", "llama-3.1-70b")
    assert ended.exit_code == 1
    assert ended.stderr.startswith("no NVIDIA driver: NVML Shared Library Not Found (NVML). Name devices with --gpus")
    assert "2 x 80GiB" in ended.stdout


def test_without_a_gpu_scripts_are_told_as_well(command: Any) -> None:
    found = planned(command, "gpt-oss-20b")
    assert (found["fits"], found["sizes"][0]["device"], found["sizes"][0]["count"]) == (False, "16GiB", 1)


def memory(total: int, free: int) -> SimpleNamespace:
    return SimpleNamespace(total=total * GIB, free=free * GIB, used=(total - free) * GIB, reserved=0)


def test_it_plans_for_the_devices_there_are(command: Any, nvml: Any, device: Any) -> None:
    found = planned(command, "llama-3.1-8b", nvml=nvml(device(), device(1)))
    assert (found["fits"], found["devices"][0]["index"]) == (True, 0)
    assert tomllib.loads(found["toml"])["plugins"]["vllm"]["engines"]["llama-3-1-8b-instruct"]["devices"] == [0]


def test_it_takes_the_one_that_has_most_left(command: Any, nvml: Any, device: Any) -> None:
    busy, idle = device(0, memory=memory(24, 3)), device(1, memory=memory(24, 24))
    found = planned(command, "llama-3.1-8b", nvml=nvml(busy, idle))
    assert found["vllm"]["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_it_plans_with_what_others_leave(command: Any, nvml: Any, device: Any) -> None:
    found = planned(command, "llama-3.2-3b", nvml=nvml(device(memory=memory(24, 12))))
    assert found["gpu_memory_utilization"] == 0.48


def test_that_others_use_memory_is_said(command: Any, nvml: Any, device: Any) -> None:
    output = command("plan", "llama-3.2-3b", nvml=nvml(device(memory=memory(24, 12)))).output
    assert "Others use memory here: vLLM may have 0.48 of each device, not 0.9." in output


def divided(device: Any) -> Any:
    """A device of two parts."""
    parts = [device(number, memory=memory(20, 20), UUID=f"MIG-{number}") for number in range(2)]
    return device(MigMode=[1, 1], instances=parts)


def test_parts_of_a_divided_device_work_alone(command: Any, nvml: Any, device: Any) -> None:
    found = planned(command, "llama-3.1-8b", nvml=nvml(divided(device)))
    assert (found["fits"], found["tensor_parallel_size"]) == (True, 1)
    assert found["vllm"]["environment"]["CUDA_VISIBLE_DEVICES"] == "MIG-0"


def test_and_not_together(command: Any, nvml: Any, device: Any) -> None:
    assert "MIG" in command("plan", "llama-3.1-8b", "--tp", "2", nvml=nvml(divided(device))).output


def test_a_pipe_in_place_of_a_config_is_refused(command: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "is no file" in command("plan", str(tmp_path), "--gpus", "24GiB").output


def test_the_largest_shape_that_is_allowed_is_planned_in_time(command: Any) -> None:
    line = "--layers 4096 --hidden 1048576 --heads 65536 --vocab 16777216 --intermediate 1048576 --gpus 8x80GiB"
    started = time.perf_counter()
    assert command("plan", *shlex.split(line)).exit_code == 1
    assert time.perf_counter() - started < 60


def test_it_sees_what_cuda_would(command: Any, nvml: Any, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = planned(command, "llama-3.1-8b", nvml=nvml(device(0), device(1)))
    assert found["devices"][0]["index"] == 1


def test_devices_that_are_all_lost_are_none(command: Any, nvml: Any, device: Any, nvml_error: Any) -> None:
    ended = command("plan", "llama-3.1-8b", nvml=nvml(device(handle=nvml_error(15))))
    assert "there is no GPU here that can be read" in ended.stderr
