"""What vLLM's log tells of a start that has failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.engines import STARTED, reason
from headrace_vllm.log import CAUSES

TOLD = {
    "memory": "out of GPU memory: lower gpu_memory_utilization",
    "busy": "the GPU has too little free memory (3.21/79.10 GiB): something else uses it",
    "length": "the KV cache is too small for max_model_len: 41760 would fit",
    "unknown": "there is no such model",
    "gated": "the hub refuses the model: accept its terms",
    "offline": "the model is not on this machine, and the hub cannot be reached",
    "devices": "it wants 4 GPUs and sees 2",
    "heads": "tensor_parallel_size = 8 does not divide the model's 28 attention heads",
    "dtype": 'this GPU knows no bfloat16: set dtype = "half"',
    "head size": "no attention kernel fits",
    "port": "another program has taken its port",
    "arguments": "vLLM refuses its arguments: unrecognized arguments: --no-such-option",
    "worker": "Worker proc VllmWorker-1 died unexpectedly (exit code: -9): out of memory, or killed",
    "strange": "KeyError: 'rope_scaling'",
}


def why(path: Path, text: str) -> str:
    log = path / "log"
    log.write_text(f"{STARTED}now\n(APIServer pid=1) INFO 11-21 22:30:14 [model.py:733] Resolved architecture\n{text}")
    return reason(log, 1, CAUSES)


@pytest.mark.parametrize("failure", TOLD)
def test_a_failure_is_told_with_what_to_do(failures: dict[str, str], tmp_path: Path, failure: str) -> None:
    assert why(tmp_path, failures[failure]).startswith(TOLD[failure])


def test_every_failure_of_the_stand_in_is_known(failures: dict[str, str]) -> None:
    assert failures.keys() == TOLD.keys()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("No module named 'vllm'", "vLLM is not there"),
        ("ValueError: No available memory for the cache blocks. Try", "the weights leave no memory for the KV cache"),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", 'an adapter is too large: set args = ["--max'),
        ("vllm: error: unrecognized arguments: --shutdown-timeout 20", "this vLLM knows no --shutdown-timeout"),
        ("  Value error, Model architectures ['Foo'] are not supported for now", "this vLLM does not know 'Foo'"),
        ("  Value error, User-specified max_model_len (9999) is greater than the derived max_model_len "
         "(max_position_embeddings=2048.0 or", "the model was made for 2048 tokens, max_model_len = 9999 is too much"),
        ("OSError: [Errno 28] No space left on device", "a disk is full"),
        ("  Value error, dtype and brackets {} [type=value_error, input_value=1]", "dtype and brackets {};"),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "log: "),
    ],
)  # fmt: skip
def test_so_are_others(tmp_path: Path, text: str, told: str) -> None:
    assert why(tmp_path, text + "\n").startswith(told)


def test_what_has_led_to_a_failure_goes_before_what_it_has_led_to(tmp_path: Path, failures: dict[str, str]) -> None:
    text = "ValueError: World size (4) is larger than the number of available GPUs (2)\n" + failures["strange"]
    assert why(tmp_path, text).startswith("it wants 4 GPUs")
