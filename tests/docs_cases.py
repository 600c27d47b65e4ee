"""The texts of the repository that cite something: code, pages, data of the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_READ = ("src", "tests", "benchmarks", "docs", "notebooks", "examples")
# Tests that cite what is not there on purpose.
_CITE_NOTHING = {"test_references.py", "test_words.py"}


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    """Each text with its path."""
    for path in sorted([*root.glob("*.md"), *(p for folder in _READ for p in (root / folder).rglob("*"))]):
        if path.name in _CITE_NOTHING:
            continue
        if path.suffix in {".py", ".md", ".ipynb"} or (path.suffix == ".yaml" and "data" in path.parts):
            yield path, path.read_text()
