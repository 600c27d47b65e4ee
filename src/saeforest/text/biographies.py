"""Short biographies made up from a data file of this package: texts with a profession and a gender, offline."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.resources import files

import yaml

#: Number of different biographies of each profession and gender.
EACH = 200


def biographies(each: int = EACH) -> Iterator[tuple[str, str, str]]:
    """Text, profession and gender of each biography, `each` for every pair, all different and always the same.

    A biography has a name, two sentences on the work and one on other things, in random order after the first. Neither
    word for the profession nor for the gender occurs in it, as in the texts of Bias in Bios. Its sentences recur in
    others: a profession has ten.

    Example:
        >>> from saeforest.text.biographies import biographies
        >>> text, profession, gender = next(biographies())
        >>> profession, gender
        ('professor', 'male')
    """
    path = files("saeforest.text").joinpath("data/biographies.yaml")
    parts = yaml.safe_load(path.read_text("utf-8"))
    rng = random.Random("biographies")
    for profession, works in parts["professions"].items():
        for gender, of in parts["genders"].items():
            made: dict[str, None] = {}
            while len(made) < each:
                name = f"{rng.choice(of['names'])} {rng.choice(parts['families'])}"
                first, *others = [*rng.sample(works, 2), rng.choice(parts["others"])]
                rng.shuffle(others)
                sentences = [sentence.format(**of["pronouns"]) for sentence in (first, *others)]
                made[f"{name}. " + " ".join(sentences)] = None
            yield from ((text, profession, gender) for text in made)
