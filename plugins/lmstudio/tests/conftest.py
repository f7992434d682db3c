"""An engine that says what it is told, and a gateway in front of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ENGINE = Path(__file__).parents[2] / "mlx" / "tests" / "engine.py"


@pytest.fixture(scope="session")
def kit() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ENGINE)))
