"""`python tests/bench/endure.py --help`: many streams, many requests, long streams. `endurance.py` is what it does."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that `bench` is a package
    sys.exit(import_module("bench.endurance").main())
