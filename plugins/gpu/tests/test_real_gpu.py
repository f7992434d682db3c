"""On a machine with an NVIDIA GPU: what we say is what `nvidia-smi` says."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import click.testing
import httpx
import pytest

from headrace import hookimpl
from headrace.cli import main
from headrace.exchange import Exchange, Principal
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace.testing import serve
from headrace_gpu import Plugin
from headrace_gpu.reader import NoGpu, Reader
from headrace_gpu.timed import Timed

MIB = 1024**2
FIELDS = "index,uuid,name,memory.total,memory.reserved,memory.used,memory.free,enforced.power.limit,temperature.gpu"


def _missing() -> str:
    """Why there is nothing to test; empty: there is a GPU."""
    try:
        found = Timed(Reader().read, 30).wait()
    except NoGpu as error:
        return str(error)
    return "" if found.gpus else "the driver sees no GPU"


REASON = _missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"needs an NVIDIA GPU: {REASON}")


class Administrator:
    """Everybody is one."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        return Principal(id="root", role="admin")


@pytest.fixture(scope="module")
def smi() -> list[dict[str, str]]:
    """What `nvidia-smi` says, by device and field."""
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    rows = csv.reader(output.splitlines(), skipinitialspace=True)
    return [dict(zip(FIELDS.split(","), row, strict=True)) for row in rows]


def run(folder: Path, *arguments: str) -> click.testing.Result:
    tables = {"server": {"state_dir": str(folder)}, "plugins": {"gpu": {"timeout": 60}}}
    gateway = Gateway(parse(tables, source="test"), "test", {"gpu": Plugin})
    return click.testing.CliRunner().invoke(main, ["gpu", *arguments], obj=gateway)


def close(one: float, other: str, within: float) -> bool:
    """What `nvidia-smi` cannot tell either does not count."""
    return "N/A" in other or abs(one - float(other)) <= within


def check(gpu: dict[str, Any], row: dict[str, str]) -> None:
    assert (str(gpu["index"]), gpu["uuid"], gpu["name"]) == (row["index"], row["uuid"], row["name"])
    assert gpu["error"] == ""
    for field in ("total", "reserved"):
        assert close(gpu["memory"][field] / MIB, row[f"memory.{field}"], 1), field
    for field in ("used", "free"):  # others may come and go meanwhile
        assert close(gpu["memory"][field] / MIB, row[f"memory.{field}"], 1024), field
    if gpu["power_limit"] is not None:
        assert close(gpu["power_limit"], row["enforced.power.limit"], 0.01)
    if gpu["temperature"] is not None:
        assert close(gpu["temperature"], row["temperature.gpu"], 15)


def test_the_list_is_that_of_nvidia_smi(smi: list[dict[str, str]], tmp_path: Path) -> None:
    ended = run(tmp_path, "list", "--json")
    assert ended.exit_code == 0, ended.output
    for gpu, row in zip(json.loads(ended.stdout)["gpus"], smi, strict=True):
        check(gpu, row)


def test_the_list_for_people_has_every_device(smi: list[dict[str, str]], tmp_path: Path) -> None:
    output = run(tmp_path, "list").output
    assert all(row["name"] in output for row in smi)


async def test_the_gateway_shows_the_same(smi: list[dict[str, str]]) -> None:
    document = {"plugins": {"gpu": {"timeout": 60}}}
    async with (
        serve(document, {"admin": Administrator, "gpu": Plugin}) as running,
        httpx.AsyncClient(base_url=running.url, timeout=120) as client,
    ):
        found = (await client.get("/v1/gpu")).json()
    assert found["reason"] == ""
    for gpu, row in zip(found["data"], smi, strict=True):
        check(gpu, row)


def test_a_small_model_is_planned_for_memory_that_is_there(
    smi: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = json.loads(run(tmp_path, "plan", "llama-3.2-1b", "--context", "2048", "--json").stdout)
    used = found["devices"][0]
    row = next(each for each in smi if each["index"] == str(used["index"]))
    seen = float(row["memory.total"]) - float(row["memory.reserved"])
    assert abs(used["memory"] / MIB - seen) <= 2
    assert close(used["free"] / MIB, row["memory.free"], 1024)
    assert used["budget"] <= used["free"]
    assert found["fits"] is (used["short"] == 0 and found["max_context"] >= 2048)


def test_a_model_that_is_too_large_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    described = "--params 90T --layers 80 --hidden 8192 --heads 64 --vocab 128256".split()  # noqa: SIM905
    ended = run(tmp_path, "plan", *described, "--json")
    assert (ended.exit_code, json.loads(ended.stdout)["fits"]) == (1, False)
