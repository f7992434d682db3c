"""What `[plugins.vllm]` may say, and what is said of it when it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError

ENGINE: dict[str, Any] = {"model": "m"}


def refusal(kit: Any, *, engine: dict[str, Any] | None = None, **engines: dict[str, Any]) -> str:
    """What is wrong with an engine, or with several."""
    with pytest.raises(ConfigError) as raised:
        kit.assembled({"engines": engines or {"gpu": {**ENGINE, **(engine or {})}}})
    return "\n".join(map(str, raised.value.problems))


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization: Expected `float` > 0"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization: Expected `float` <= 1"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: Expected `int` >= 1"),
        ({"port": 0}, "port: Expected `int` >= 1"),
        ({"dtype": "fp4"}, "dtype: Invalid enum value 'fp4'"),
        ({"devices": [-1]}, "devices[0]: Expected `int` >= 0"),
        ({"tensor_paralel_size": 2}, "did you mean 'tensor_parallel_size'"),
        ({"model": ""}, "model: name a folder, or a model of the hub"),
        ({"model": "--port"}, "model: name a folder"),
        ({"served_model_name": [""]}, "served_model_name: is empty"),
        ({"host": ""}, "host: is empty"),
        ({"devices": [0, 0], "tensor_parallel_size": 2}, "devices: each GPU once"),
        ({"devices": [0], "tensor_parallel_size": 2},
         "devices: tensor_parallel_size * pipeline_parallel_size = 2, but 1 GPUs are given"),
        ({"devices": [0, 1], "tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "= 4, but 2 GPUs are given"),
        ({"devices": [0, 1]}, "= 1, but 2 GPUs are given"),
        ({"nodes": 2, "tensor_parallel_size": 3}, "nodes: 3 GPUs cannot be dealt out evenly to 2 machines"),
        ({"nodes": 2, "tensor_parallel_size": 4, "devices": [0]}, "= 4 on 2 nodes, but 1 GPUs are given"),
        ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, "max_num_batched_tokens: 4 is less than max_num_seqs, 8"),
        ({"max_num_batched_tokens": 512, "max_model_len": 1024, "enable_chunked_prefill": False},
         "must not be less than max_model_len, 1024"),
        ({"lora_modules": {"a=b": "/x"}}, "lora_modules: 'a=b' needs a name without '='"),
        ({"lora_modules": {"a": ""}}, "lora_modules: 'a' needs"),
        ({"lora_modules": {"m": "/x"}}, "lora_modules: 'm' is the model's own name"),
        ({"args": ["--port", "1"]}, "args: --port has a key of its own: port"),
        ({"args": ["--dtype=half"]}, "args: --dtype has a key of its own: dtype"),
        ({"args": ["--api-key", "sk"]}, "args: --api-key has a key of its own: api_key"),
        ({"args": ["--uds", "/x"]}, "with --uds the gateway does not find its engine"),
        ({"env": {"VLLM_API_KEY": "sk"}}, "env: VLLM_API_KEY has a key of its own: api_key"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "env: CUDA_VISIBLE_DEVICES has a key of its own: devices"),
        ({"env": {"A-B": "0"}}, "env: 'A-B' is no name of a variable"),
        ({"command": "vllm", "python": "python"}, "command and python: give one of them"),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_be_is_refused_with_its_key(kit: Any, engine: dict[str, Any], told: str) -> None:
    assert told in refusal(kit, engine=engine)


def test_everything_that_is_wrong_with_an_engine_is_told_at_once(kit: Any) -> None:
    told = refusal(kit, engine={"devices": [0, 0], "host": "", "args": ["--port", "1"]})
    assert all(words in told for words in ("devices: each GPU once", "host: is empty", "args: --port"))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-a", "a" * 65])
def test_an_engine_needs_a_name_that_a_file_can_have(kit: Any, name: str) -> None:
    assert f"engines: {name!r} must be letters" in refusal(kit, **{name: ENGINE})


def test_engines_on_one_port_are_refused_by_name(kit: Any) -> None:
    assert "a and b cannot all listen on port 8000: give each its own `port`" in refusal(kit, a=ENGINE, b=ENGINE)


def test_engines_that_want_more_than_a_gpu_together_are_refused(kit: Any) -> None:
    one, other = {**ENGINE, "devices": [1]}, {**ENGINE, "devices": [1], "port": 8001, "gpu_memory_utilization": 0.2}
    assert "a and b want 112% of GPU 1 together" in refusal(kit, a=one, b=other)


def test_engines_may_share_a_gpu_that_is_large_enough_for_both(kit: Any) -> None:
    half = {**ENGINE, "devices": [1], "gpu_memory_utilization": 0.5}
    kit.assembled({"engines": {"a": half, "b": {**half, "port": 8001}}})


def test_more_gpus_than_one_copy_takes_may_hold_several_copies(kit: Any) -> None:
    engine = {**ENGINE, "devices": [0, 1, 2, 3], "tensor_parallel_size": 2, "args": ["--data-parallel-size=2"]}
    kit.assembled({"engines": {"gpu": engine}})


def test_a_secret_is_never_repeated(kit: Any) -> None:
    told = refusal(kit, engine={"env": {"A-B": "hf-mine"}, "api_key": "sk-mine", "host": ""})
    assert "mine" not in told
