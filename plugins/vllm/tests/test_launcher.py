"""Engines that `headrace up` starts: their start, their failures, their end. The engine is fake_vllm.py."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or relies on prctl")

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
ONE = """
[backends.gpu]
provider = "vllm"
options = { engine = "gpu" }
[models.chat]
targets = ["gpu"]
"""
TWO = """
[backends.gpu]
provider = "vllm"
options = { engine = "gpu" }
[backends.spare]
provider = "vllm"
options = { engine = "spare" }
[models.chat]
targets = ["gpu"]
fallback = ["spare"]
"""


@pytest.fixture
def port(kit: Any) -> int:
    return int(kit.free_port())


def ask(up: Any) -> httpx.Response:
    return httpx.post(f"{up.url}/v1/chat/completions", json=CHAT, timeout=30, trust_env=False)


def who(answer: httpx.Response) -> int:
    """The process that has answered."""
    assert answer.status_code == 200, answer.text
    return int(answer.json()["choices"][0]["message"]["content"].split()[1])


# --- the start ---


def test_an_engine_is_started_and_answers_and_is_ended_with_all_of_its_processes(
    site: Any, start: Callable[[], Any], port: int, kit: Any
) -> None:
    site.write(site.engine("gpu", port), ONE)
    up = start().ready()
    pids = site.pids(port)
    assert who(ask(up)) == pids[0]
    assert up.end() == 0
    assert not any(map(kit.alive, pids))


def test_a_start_is_told_in_few_lines(site: Any, start: Callable[[], Any], port: int) -> None:
    site.mode.write_text("slow")
    site.write(site.engine("gpu", port), ONE)
    up = start()
    up.saying("vllm gpu: CUDA graphs captured")
    site.mode.unlink()
    up.ready()
    told = [line.removeprefix("vllm gpu: ") for line in up.said if line.startswith("vllm gpu: ")]
    assert told[:9] == [
        "vLLM 0.32.0",
        "loading the model",
        "loading weights, 0 % (0 of 4 files)",
        "weights loaded in 9 s",
        "the model takes 14.99 GiB of each GPU",
        "55.31 GiB are left for the KV cache",
        "the KV cache holds 453,056 tokens",
        "capturing CUDA graphs, 42 %",
        "CUDA graphs captured in 6 s",
    ]


def test_what_an_engine_says_is_in_its_log_and_nowhere_else(site: Any, start: Callable[[], Any], port: int) -> None:
    site.write(site.engine("gpu", port), ONE)
    up = start().ready()
    assert "Resolved architecture: LlamaForCausalLM" in site.log("gpu")
    assert stat.S_IMODE((site.folder / "s" / "log" / "vllm-gpu.log").stat().st_mode) == 0o600
    up.end()
    assert "Resolved architecture" not in (site.folder / "stderr").read_text()


def test_an_engine_gets_its_arguments_devices_and_key_and_the_key_only_by_its_environment(
    site: Any, start: Callable[[], Any], port: int
) -> None:
    keys: dict[str, Any] = {
        "tensor_parallel_size": 2,
        "devices": [0, 3],
        "served_model_name": ["small", "also"],
        "api_key": "sk-engine",
        "args": ["--seed", "7"],
        "env": {"HF_TOKEN": "hf-mine"},
        "drain": 4,
    }
    site.write(site.engine("gpu", port, **keys), ONE)
    up = start().ready()
    given = site.noted(port, "start")
    assert " ".join(given["argv"]) == (
        f"serve m --served-model-name small also --host 127.0.0.1 --port {port} --tensor-parallel-size 2 "
        "--shutdown-timeout 4 --seed 7"
    )
    wanted = {"CUDA_VISIBLE_DEVICES": "0,3", "VLLM_API_KEY": "sk-engine", "HF_TOKEN": "hf-mine"}
    assert {name: given["env"][name] for name in wanted} == wanted
    assert who(ask(up)) == given["pid"]  # the key is sent
    ((_, fields),) = site.noted(port, "asked")
    assert fields["model"] == "small"


def test_engines_start_side_by_side(site: Any, start: Callable[[], Any], port: int, kit: Any) -> None:
    other = kit.free_port()
    site.mode.write_text("slow")
    site.write(site.engine("gpu", port), site.engine("spare", other), TWO)
    up = start()
    assert len(site.pids(port) + site.pids(other)) == 4  # while neither is ready
    site.mode.unlink()
    up.ready()


def test_a_taken_port_is_told_of_before_anything_starts(site: Any, start: Callable[[], Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        site.write(site.engine("gpu", port), ONE)
        done = site.run("up")
    assert done.returncode == 1
    assert f"engine 'gpu', 127.0.0.1:{port}: another program listens there: set another `port`" in done.stderr
    assert not (site.folder / "s" / "log" / "vllm-gpu.log").exists()


def test_a_stop_while_it_loads_ends_it(site: Any, start: Callable[[], Any], port: int, kit: Any) -> None:
    site.mode.write_text("slow")
    site.write(site.engine("gpu", port), ONE)
    up = start()
    pids = site.pids(port)
    up.saying("vllm gpu: ")
    assert up.end() == 0
    assert not any(map(kit.alive, pids))


# --- failures ---

TOLD = {
    "memory": (1, "out of GPU memory: lower gpu_memory_utilization"),
    "arguments": (2, "vLLM refuses its arguments: unrecognized arguments: --no-such-option"),
    "killed": (137, "killed (SIGKILL), most often by the kernel for want of memory"),
}


@pytest.mark.parametrize("failure", TOLD)
def test_a_start_that_fails_ends_everything_and_says_why_in_one_line(site: Any, port: int, failure: str) -> None:
    site.mode.write_text(failure)
    site.write(site.engine("gpu", port), ONE)
    done = site.run("up")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    status, why = TOLD[failure]
    assert line.startswith(f"Error: vllm gpu ended at once (exit status {status}): {why}")
    assert line.endswith(f"; log: {site.folder}/s/log/vllm-gpu.log")


def test_a_vllm_that_is_not_installed_is_told_of(site: Any, port: int) -> None:
    site.write(site.engine("gpu", port, command="/nowhere/vllm"), ONE)
    done = site.run("up")
    assert done.returncode == 1
    assert "vLLM is not there: pip install 'headrace-vllm[engine]'" in done.stderr


def test_an_engine_that_takes_too_long_is_given_up_with_what_is_known(site: Any, port: int, kit: Any) -> None:
    site.mode.write_text("slow")
    site.write(site.engine("gpu", port, ready_timeout=1.5), ONE)
    done = site.run("up")
    assert done.returncode == 1
    assert "vllm gpu was not ready after 1.5 s: log: " in done.stderr
    kit.until(lambda: not any(map(kit.alive, site.pids(port))), "the end of its processes")


def test_an_engine_that_fails_where_others_can_answer_is_gone_on_without_and_comes_back(
    site: Any, start: Callable[[], Any], port: int, kit: Any
) -> None:
    other = kit.free_port()
    mode = site.folder / "other-mode"
    mode.write_text("memory")
    broken = site.engine("gpu", port, env={"FAKE_VLLM": str(mode)})
    site.write(broken, site.engine("spare", other), TWO)
    up = start().ready()
    assert "out of GPU memory" in up.saying("going on without it")
    assert who(ask(up)) == site.noted(other, "start")["pid"]
    mode.unlink()
    up.saying("vllm gpu is back")
    kit.until(
        lambda: ask(up).json()["choices"][0]["message"]["content"] != f"process {site.noted(other, 'start')['pid']}"
    )


# --- while it runs ---


@linux
def test_an_engine_that_is_killed_is_started_again_and_meanwhile_errors_are_clean(
    site: Any, start: Callable[[], Any], port: int, kit: Any
) -> None:
    site.write(site.engine("gpu", port), ONE)
    up = start().ready()
    before = site.pids(port)
    site.mode.write_text("slow")
    os.kill(before[0], signal.SIGKILL)
    up.saying("vllm gpu ended (exit status 137): killed (SIGKILL)")
    answer = ask(up)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert not any(map(kit.alive, before)), "what it had started holds its memory"
    site.mode.unlink()
    up.saying("vllm gpu is back")
    assert who(ask(up)) == site.noted(port, "start")["pid"] != before[0]


def test_meanwhile_the_fallback_answers(site: Any, start: Callable[[], Any], port: int, kit: Any) -> None:
    other = kit.free_port()
    site.write(site.engine("gpu", port), site.engine("spare", other), TWO)
    up = start().ready()
    os.kill(site.noted(port, "start")["pid"], signal.SIGKILL)
    assert who(ask(up)) == site.noted(other, "start")["pid"]


@linux
def test_when_the_gateway_is_killed_while_an_engine_loads_no_process_is_left(
    site: Any, start: Callable[[], Any], port: int, kit: Any
) -> None:
    site.mode.write_text("slow")
    site.write(site.engine("gpu", port), ONE)
    up = start()
    pids = site.pids(port)
    up.child.kill()
    kit.until(lambda: not any(map(kit.alive, pids)), "the end of every process")


@linux
def test_a_second_signal_ends_an_engine_at_once(site: Any, start: Callable[[], Any], port: int, kit: Any) -> None:
    site.write(site.engine("gpu", port, env={"FAKE_STUBBORN": "1"}, drain=3000), ONE)
    up = start().ready()
    pids = site.pids(port)
    up.child.send_signal(signal.SIGTERM)
    up.saying("again to stop at once")
    up.child.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert not any(map(kit.alive, pids))


@linux
def test_when_the_gateway_is_killed_no_process_is_left(
    site: Any, start: Callable[[], Any], port: int, kit: Any
) -> None:
    site.write(site.engine("gpu", port), ONE)
    up = start().ready()
    pids = site.pids(port)
    up.child.kill()
    kit.until(lambda: not any(map(kit.alive, pids)), "the end of every process")


# --- reload ---


def test_a_reload_that_would_change_engines_is_refused_and_one_that_would_not_is_done(
    site: Any, start: Callable[[], Any], port: int
) -> None:
    site.write(site.engine("gpu", port), ONE)
    start().ready()
    site.write(site.engine("gpu", port), ONE, 'aliases = ["also"]')
    assert site.run("reload").returncode == 0
    site.write(site.engine("gpu", port, max_num_seqs=8), ONE)
    done = site.run("reload")
    assert done.returncode == 1
    assert "[plugins.vllm.engines]: 'gpu' is changed, and a reload neither starts nor stops engines" in done.stderr
