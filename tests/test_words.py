"""The English of the source: what STYLE asks of docstrings, help texts, comments and errors, where a test can tell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import saeforest
from words_cases import Text, texts

ROOT = Path(saeforest.__file__).parent
DOCS = ROOT.parents[1] / "docs"
FILES = sorted(ROOT.rglob("*.py"))

# American English has neither these words nor these endings.
_BRITISH = re.compile(
    r"(colour|behaviour|favour|neighbour|honour|flavour|rumour|artefact|judgement|programme\b|catalogue|defence|licence"
    r"|\bgrey|fulfil\b|(mis|\b)spelt|learnt|whilst|amongst|centre|centring|\bcentring|metre\b|fibre"
    r"|(label|model|cancel|travel|signal|level|total|channel)l(ed|ing|er)\b|analys(e|ed|es|ing)\b"
    r"|(normal|optim|initial|summar|organ|recogn|general|special|regular|quant|token|serial|visual|minim|maxim|util|final"
    r"|character|standard|random|parallel|material|local|central|author|emphas|categor|symbol|real|equal|penal|neutral"
    r"|stabil|custom|discret|vector|factor|orthogonal|orthonormal|linear|separ|memor|prior|crystall|item)"
    r"is(e|es|ed|er|ers|ing|ation|ations)\b)",
    re.IGNORECASE,
)
# Keys of records that people have saved keep their spelling.
_SAVED = re.compile(r"fvu_uncentred")
_BEGINS_WITH_OF = re.compile(r"(What )?Of\b", re.IGNORECASE)
_PAGE = re.compile(r"\bdocs/([\w/.-]+\.md)")


def faults(text: Text) -> list[str]:
    """What is wrong with the words of a text, each fault in a few words."""
    found = []
    if _BEGINS_WITH_OF.match(text.words):
        found.append("begins with Of")
    if text.kind == "help" and "InputError" in text.words:
        found.append("tells a user the name of an exception")
    found += [f"there is no docs/{page}" for page in _PAGE.findall(text.words) if not (DOCS / page).is_file()]
    return found


def test_the_words_of_the_source() -> None:
    assert [fault for path in FILES for fault in faults_of_file(path)] == []


def faults_of_file(path: Path) -> list[str]:
    name = path.relative_to(ROOT)
    found = [
        f"{name}:{text.line}: {fault}: {text.words[:80]}" for text in texts(path) for fault in faults(text)
    ]
    source = path.read_text(encoding="utf-8")
    found += [
        f"{name}:{number}: British spelling: {word[0]}"
        for number, line in enumerate(source.splitlines(), 1)
        for word in _BRITISH.finditer(_SAVED.sub("", line))
    ]
    if "UserError" in source:
        found.append(f"{name}: UserError is now InputError")
    return found


def test_public_functions_and_classes_have_a_docstring() -> None:
    """Kernels of one name have one docstring, that of `kernels/plain.py`; commands have their help."""
    assert FILES
    assert [name for path in FILES if _has_docstrings(path) for name in without_docstring(path)] == []


def _has_docstrings(path: Path) -> bool:
    of_one_backend = path.is_relative_to(ROOT / "kernels") and path.parent != ROOT / "kernels"
    return not of_one_backend and not path.is_relative_to(ROOT / "cli")


def without_docstring(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]


def test_each_fault_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        '"""Of all that is here; see docs/nowhere.md."""\n'
        "class A:\n"
        "    x: int = 0\n"
        '    """Below 1: InputError."""\n'
        "    # Of these,\n"
        "    # the first.\n"
        "    y = 1  # of y\n"
        "def f():\n"
        '    raise ValueError(f"of {x} no use")\n'
    )
    found = {(text.line, text.kind): faults(text) for text in texts(path)}
    assert found == {
        (1, "docstring"): ["begins with Of", "there is no docs/nowhere.md"],
        (4, "help"): ["tells a user the name of an exception"],
        (5, "comment"): ["begins with Of"],
        (7, "comment"): ["begins with Of"],
        (9, "error"): ["begins with Of"],
    }
    british = "normalised Behaviour misspelt modelling optimiser labelled centred"
    assert all(_BRITISH.search(word) for word in british.split())
    american = (
        "normalized noise otherwise raise modeling optimizer labeled center parallel concise precision rise"
    )
    assert not any(_BRITISH.search(word) for word in american.split())
