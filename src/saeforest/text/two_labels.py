"""Texts with two labels each, such as a profession and a gender, for measures of what a probe picks up by accident."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saeforest.errors import InputError
from saeforest.schema import listed, shown
from saeforest.text.biographies import biographies
from saeforest.text.hub import hub_name, hub_rows
from saeforest.text.labeled import LabeledText
from saeforest.text.opening import opened
from saeforest.text.readers import csv_records, parse_record

BIOGRAPHIES = "built-in:biographies"


class _Columns(NamedTuple):
    """Columns of a data set, and what the numbers in its label columns stand for."""

    text: str
    label: str
    second: str
    labels: tuple[str, ...] = ()
    seconds: tuple[str, ...] = ()


# fmt: off
#: Layouts of records, each recognized by its columns: ours, Bias in Bios', and that of SAEBench's Amazon reviews.
_LAYOUTS = (
    _Columns("text", "label", "second_label"),
    _Columns(
        "hard_text", "profession", "gender",
        ("accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj",
         "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor",
         "personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper",
         "software_engineer", "surgeon", "teacher", "yoga_teacher"),
        ("male", "female"),
    ),
    _Columns(
        "text", "category", "rating",
        ("All_Beauty", "Toys_and_Games", "Cell_Phones_and_Accessories", "Industrial_and_Scientific", "Gift_Cards",
         "Musical_Instruments", "Electronics", "Handmade_Products", "Arts_Crafts_and_Sewing", "Baby_Products",
         "Health_and_Household", "Office_Products", "Digital_Music", "Grocery_and_Gourmet_Food", "Sports_and_Outdoors",
         "Home_and_Kitchen", "Subscription_Boxes", "Tools_and_Home_Improvement", "Pet_Supplies", "Video_Games",
         "Kindle_Store", "Clothing_Shoes_and_Jewelry", "Patio_Lawn_and_Garden", "Unknown", "Books", "Automotive",
         "CDs_and_Vinyl", "Beauty_and_Personal_Care", "Amazon_Fashion", "Magazine_Subscriptions", "Software",
         "Health_and_Personal_Care", "Appliances", "Movies_and_TV"),
    ),
)
# fmt: on


def both(label: str, second: str) -> str:
    """The name of the class of texts that have both labels."""
    return f"{label} & {second}"


def doubly_labeled(source: str) -> list[tuple[LabeledText, str]]:
    """The texts of `source`, each with its first label, and its second label. Texts without visible characters are
    skipped.

    A source is one of

    - `"built-in:biographies"`: made-up biographies with a profession and a gender.
    - a .jsonl or .csv file with columns "text", "label" and "second_label", or with those of Bias in Bios ("hard_text",
      "profession", "gender") or of SAEBench's Amazon reviews ("text", "category", "rating").
    - a data set of the Hub with such columns, of which the split "train" is read: `"LabHC/bias_in_bios"`,
      `"canrager/amazon_reviews_mcauley_1and5"`.

    Raises:
        InputError: the source does not exist, is empty, has other columns, or can't be read.
    """
    path = Path(os.path.expanduser(source))
    if source == BIOGRAPHIES:
        made = enumerate(biographies(), 1)
        return [(LabeledText(text, label, f"biography {n}"), second) for n, (text, label, second) in made]
    if source and path.is_file():
        rows = _file(path)
    elif (place := hub_name(source)) is not None:
        rows = hub_rows(f"texts with two labels '{source}'", source, place, "train")
    else:
        raise InputError(
            f"texts with two labels '{source}': no such file; give a .jsonl or .csv file with columns text, label and "
            f"second_label, a data set of the Hub (LabHC/bias_in_bios), or '{BIOGRAPHIES}'"
        )
    found = list(_labeled(rows))
    if not found:
        raise InputError(f"texts with two labels '{source}': expected at least one text, found none")
    return found


def _file(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    if path.suffix.lower() == ".csv":
        yield from ((row, where) for _, row, where in csv_records(path))
        return
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{path}: expected a .jsonl or .csv file")
    with opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield parse_record(line, where), where


def _labeled(rows: Iterator[tuple[Mapping[str, Any], str]]) -> Iterator[tuple[LabeledText, str]]:
    for row, where in rows:
        of = next((c for c in _LAYOUTS if {c.text, c.label, c.second} <= row.keys()), None)
        if of is None:
            raise InputError(
                f'{where}: expected columns "text", "label" and "second_label", found {listed(list(row))}; rename them'
            )
        text = row[of.text]
        if not isinstance(text, str):
            raise InputError(f'{where}: expected a string under "{of.text}", found {shown(text)}')
        if text.strip():
            label = _name(row[of.label], of.label, of.labels, where)
            yield LabeledText(text, label, where), _name(row[of.second], of.second, of.seconds, where)


def _name(value: object, column: str, names: tuple[str, ...], where: str) -> str:
    """The name of a label: itself, or what its number stands for."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, float) and text.is_integer():
        text = int(text)
    if isinstance(text, int) or (names and isinstance(text, str) and text.isdecimal()):
        number = int(text)
        if names and not 0 <= number < len(names):
            raise InputError(
                f'{where}: expected a number below {len(names)} under "{column}", found {number}'
            )
        return names[number] if names else str(number)
    if isinstance(text, str) and text:
        return text
    found = "nothing" if text in (None, "") else shown(text)
    raise InputError(f'{where}: expected a string or an integer under "{column}", found {found}')
