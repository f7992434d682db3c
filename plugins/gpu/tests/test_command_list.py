"""`headrace gpu list`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

DRIVERLESS = """
import sys
sys.path.insert(0, {tests!r})
from importlib import util
spec = util.spec_from_file_location("fakes", {tests!r} + "/conftest.py")
fakes = util.module_from_spec(spec)
spec.loader.exec_module(fakes)
import headrace_gpu
headrace_gpu.Plugin = fakes.with_nvml(fakes.FakeNvml(fakes.a_device()))
from headrace.cli import main
main(["--config", {config!r}, "gpu", "list", "--watch", "0.1", "--json"])
"""


def test_it_shows_every_device(command: Any, nvml: Any, device: Any) -> None:
    lines = command("list", nvml=nvml(device(0), device(1))).output.splitlines()
    assert lines[0] == "driver 580.1"
    assert lines[2].split() == (
        "0 NVIDIA H100 80GB HBM3 10.0 GiB 80.0 GiB 37% 54 312 of 700 W 1980 MHz 1".split()  # noqa: SIM905
    )
    assert lines[3].startswith("1 ")


def test_it_says_what_is_wrong(command: Any, nvml: Any, device: Any, nvml_error: Any) -> None:
    output = command("list", nvml=nvml(device(ecc1=2), device(1, handle=nvml_error(15)))).output
    assert "0: slowed down: sw_power_cap" in output
    assert "0: 2 errors of memory that could not be corrected" in output
    assert "0: NVLink: 2 up, down: 2" in output
    assert "0: process 4242: 9.0 GiB" in output
    assert "1: it cannot be read: GPU is lost" in output


def test_it_says_it_in_json_for_scripts(command: Any, nvml: Any, device: Any) -> None:
    found = json.loads(command("list", "--json", nvml=nvml(device())).output)
    assert found["gpus"][0]["power_limit"] == 700.0


def test_without_a_driver_it_says_so_in_a_line(command: Any) -> None:
    ended = command("list")
    assert (ended.exit_code, ended.output) == (1, "Error: no NVIDIA driver: NVML Shared Library Not Found (NVML)\n")


def test_a_driver_without_devices_is_no_failure(command: Any, nvml: Any) -> None:
    ended = command("list", nvml=nvml())
    assert (ended.exit_code, ended.output) == (0, "driver 580.1: it sees no GPU\n")


def test_a_driver_that_hangs_is_given_up(command: Any, nvml: Any, device: Any) -> None:
    hung = nvml(device())
    hung.open.clear()
    ended = command("list", nvml=hung, timeout=0.05)
    hung.open.set()
    assert (ended.exit_code, "has not answered within 0.05 s" in ended.output) == (1, True)


def test_a_wrong_call_is_refused(command: Any) -> None:
    assert command("list", "--watch", "nan").exit_code == 2


async def test_it_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\n[plugins.gpu]\n')
    program = DRIVERLESS.format(tests=str(Path(__file__).parent), config=str(config))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
        os.kill(process.pid, signal.SIGINT)
        rest = await process.stdout.read()
        status = await process.wait()
    assert lines[0]["at"] < lines[1]["at"]
    assert (status, b"Traceback" in rest) == (0, False)
