"""Write the generated pages of the documentation, or with `--check` say which of them are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from generator import PAGES

DOCS = Path(__file__).resolve().parent


def outdated(folder: Path = DOCS) -> list[str]:
    """The generated pages in `folder` that differ from what would be written now, as paths below it."""
    return [name for name, render in PAGES.items() if _current(folder / name) != render()]


def write(folder: Path = DOCS) -> list[str]:
    """Write what has changed. Returns the pages written, as paths below `folder`."""
    changed = outdated(folder)
    for name in changed:
        page = folder / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGES[name](), "utf-8")
    return changed


def _current(page: Path) -> str | None:
    return page.read_text("utf-8") if page.is_file() else None


def main(arguments: list[str], folder: Path = DOCS) -> int:
    """The command line. Exit status 1 if `--check` found a page out of date, 2 for a wrong call."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/generate.py [--check]\n")
        return 2
    if not arguments:
        for name in write(folder):
            sys.stdout.write(f"wrote docs/{name}\n")
        return 0
    stale = outdated(folder)
    for name in stale:
        sys.stderr.write(f"docs/{name} is out of date: run python docs/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
