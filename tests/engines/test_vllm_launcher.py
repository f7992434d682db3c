"""vLLM as a process of the gateway: its start, its death, its end, over one worker and over two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from ..processes import still_there
from .asking import Caller, asking, idle_after
from .launching import Site, command, site


@pytest.fixture(scope="module")
def caller(own_engine: Site) -> Iterator[Caller]:
    with own_engine.calling() as made:
        yield made


def test_its_start_is_told_in_few_lines_and_its_words_are_in_its_log(own_engine: Site) -> None:
    lines = [line for line in own_engine.stack.launched.stderr.splitlines() if line.startswith("headrace: vllm tiny: ")]
    assert "headrace: vllm tiny: loading the model" in lines
    assert any("the KV cache holds" in line for line in lines)
    assert len(lines) < 25
    assert "Resolved architecture: LlamaForCausalLM" in own_engine.log.read_text()
    assert "Resolved architecture" not in own_engine.stack.launched.stderr


def test_it_runs_over_as_many_workers_as_are_wanted(own_engine: Site) -> None:
    workers = [pid for pid in own_engine.engine() if command(pid).startswith(b"VLLM::Worker_TP")]
    assert len(workers) == 2


def test_the_list_of_engines_says_that_it_answers(own_engine: Site) -> None:
    line = own_engine.run("vllm", "list").stdout.splitlines()[-1]
    assert "tiny" in line
    assert "yes" in line


def test_one_that_is_killed_is_started_again_and_meanwhile_nobody_sees_more_than_a_clean_error(
    own_engine: Site, caller: Caller, kit: Any
) -> None:
    before, first = own_engine.engine(), own_engine.first()
    os.kill(first, signal.SIGKILL)
    kit.until(lambda: own_engine.said("vllm tiny ended (exit status 137): killed (SIGKILL)"), "its being noticed")
    alone, fallen = caller.ask("wheel", max_tokens=3).wait(), caller.ask("fallen", max_tokens=3).wait()
    assert isinstance(alone.error, openai.APIStatusError)
    assert (alone.error.status_code, alone.code) == (503, "unavailable")
    assert (fallen.error, caller.target(fallen)) == (None, "spare")
    assert still_there(before) == []
    began = time.monotonic()
    kit.until(lambda: own_engine.said("vllm tiny is back"), "its coming back", 400)
    print(f"back after {time.monotonic() - began:.0f} s")
    kit.until(lambda: caller.ask("wheel", max_tokens=3).wait().error is None, "its answering")
    assert own_engine.first() != first


def test_when_the_gateway_is_killed_nothing_is_left(own_engine: Site, kit: Any) -> None:
    """The last test of this engine."""
    before = own_engine.engine()
    assert len(before) > 4
    own_engine.stack.launched.child.kill()
    began = time.monotonic()
    kit.until(lambda: not still_there(before), "the end of every process")
    print(f"all gone after {time.monotonic() - began:.1f} s")


@pytest.fixture(scope="module")
def one(launch: Callable[..., Any], kit: Any, tiny: Path) -> Iterator[Site]:
    """A gateway whose engine has one worker."""
    from .conftest import vllm_python

    with kit.short_folder() as folder, site(launch, folder, vllm_python(), tiny) as made:
        made.leave_a_cpu()
        yield made


@pytest.mark.parametrize("model", ["wheel", "inline"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_second_after_the_client_left_the_engine_is_at_rest(one: Site, kit: Any, model: str, stream: bool) -> None:
    with one.calling() as caller:
        with asking(caller, model, "/v1/chat/completions", stream, max_tokens=1900):
            kit.until(lambda: one.running == 1, "the engine's work")
            left = time.monotonic()
        assert idle_after(one, left) < 1


def test_with_one_worker_it_answers_and_when_the_gateway_stops_nothing_is_left(one: Site) -> None:
    with one.calling() as caller:
        asked = caller.ask("wheel", max_tokens=5, stream=True).wait()
        assert (asked.error, asked.finish) == (None, ["length"])
    before = one.engine()
    began = time.monotonic()
    assert one.stack.launched.end() == 0
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert still_there(before) == []
