"""What the repository cites can be opened: pages and their anchors, links, files, the specification's equations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from docs_cases import ROOT, sources

PAGE = re.compile(r"(?<![\w/])docs/[\w./-]+?\.md(?:#[\w-]+)?")
LINK = re.compile(r"\]\(([^()\s]+)\)")
FILE = re.compile(
    r"`(?:python |pytest |\.venv/bin/\w+ )?((?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|yml|json|txt|png))\b[^`\n]*`"
)
CODE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`[^`\n]+`")
NAMED = re.compile(r"\{#([\w-]+)\}")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
CLOSED = re.compile(r"\bSPEC [0-9]|SPEC\.md|DESIGN\.md|AUDIT\.md|\bspec [0-9]+\.[0-9]")
EQUATIONS = range(1, 14)


@cache
def anchors(page: Path) -> set[str]:
    """Where a link into a page can point: named anchors, and the names that headings without one get."""
    text = CODE.sub("", page.read_text())
    found, times = set(NAMED.findall(text)), Counter[str]()
    for heading in HEADING.findall(text):
        if not NAMED.search(heading):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
            found.add(f"{slug}_{times[slug]}" if times[slug] else slug)
            times[slug] += 1
    return found


def missing(root: Path) -> list[str]:
    """What is cited and not there, one line each."""
    found = [
        f"{path.relative_to(root)}: {what}"
        for path, text in sources(root)
        for what in _missing(root, path, text)
    ]
    equations = Counter(
        a for page in (root / "docs" / "spec").glob("*.md") for a in NAMED.findall(page.read_text())
    )
    return found + [
        f"docs/spec: Eq. {n}: {equations[f'eq-{n}']} times" for n in EQUATIONS if equations[f"eq-{n}"] != 1
    ]


def _missing(root: Path, path: Path, text: str) -> Iterator[str]:
    for cited in PAGE.findall(text):
        page, _, anchor = cited.partition("#")
        yield from _unresolved(root / page, anchor, cited)
    for cited in CLOSED.findall(text):
        yield f"{cited}...: a reference that nobody can open"
    if path.suffix == ".md":
        prose = CODE.sub("", text)
        for target in LINK.findall(INLINE.sub("", prose)):
            if not re.match(r"[a-z]+:", target):
                page, _, anchor = target.partition("#")
                yield from _unresolved(path.parent / page if page else path, anchor, target)
        for cited in FILE.findall(prose):
            if _is_ours(root, cited) and not any((base / cited).exists() for base in _bases(root)):
                yield f"{cited}: no such file"


def _unresolved(page: Path, anchor: str, cited: str) -> Iterator[str]:
    if not page.exists():
        yield f"{cited}: no such file"
    elif anchor and anchor not in anchors(page):
        yield f"{cited}: no such anchor"


def _bases(root: Path) -> tuple[Path, ...]:
    return root, root / "src", root / "src" / "saeforest", root / "docs"


def _is_ours(root: Path, cited: str) -> bool:
    """Whether a path names a file of the repository and not one of a run, or one yet to be written (NAME.py)."""
    return not re.search(r"[A-Z]{3,}(\b(?!\.md)|_)", cited) and any(
        (base / cited.split("/")[0]).is_dir() for base in _bases(root)
    )


def test_everything_cited_is_there() -> None:
    assert missing(ROOT) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository in which everything that is cited is there."""
    equations = "\n".join(f"[](){{#eq-{n}}}" for n in EQUATIONS)
    files = {
        "README.md": "[Eq. 10](docs/spec/tree.md#eq-10), [gate](docs/spec/tree.md#the-gate), `src/saeforest/a.py`",
        "docs/spec/tree.md": (
            f"# Tree\n\n## The gate\n\n## Again {{#other}}\n\n{equations}\n\n[home](../../README.md) [here](#other)\n"
        ),
        "src/saeforest/a.py": '"""docs/spec/tree.md#other"""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_sound_repository_passes(small: Path) -> None:
    assert missing(small) == []


@pytest.mark.parametrize(
    ("file", "added", "said"),
    [
        ("src/saeforest/a.py", "# docs/spec/tree.md#gone", "docs/spec/tree.md#gone: no such anchor"),
        ("src/saeforest/a.py", "# docs/spec/bush.md", "docs/spec/bush.md: no such file"),
        ("src/saeforest/a.py", "# (SPEC " + "5.6 #29)", "a reference that nobody can open"),
        ("docs/spec/tree.md", "[there](#gone)", "#gone: no such anchor"),
        ("docs/spec/tree.md", "[there](bush.md)", "bush.md: no such file"),
        ("docs/spec/tree.md", "`saes/tree.py` `src/saeforest/b.py`", "src/saeforest/b.py: no such file"),
        ("docs/spec/tree.md", "[](){#eq-10}", "Eq. 10: 2 times"),
        ("README.md", "```\n## Not a heading\n```\n[x](#not-a-heading)", "#not-a-heading: no such anchor"),
    ],
)
def test_what_is_not_there_is_named(small: Path, file: str, added: str, said: str) -> None:
    path = small / file
    path.write_text(path.read_text() + "\n\n" + added + "\n")
    (found,) = missing(small)
    assert said in found
