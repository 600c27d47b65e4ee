"""The table of measures in docs/measures.md names every measure, with the sets that it is in."""

from __future__ import annotations

import re

from docs_cases import ROOT
from saeforest.evaluation import MEASURES


def test_the_table_of_measures_has_the_sets_of_the_code() -> None:
    """A row of several measures with different sets gives them in order, with semicolons between."""
    page = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    table = page.split("| measure | values | in the sets |")[1].split("\n\n")[0]
    found: dict[str, tuple[str, ...]] = {}
    for row in table.splitlines()[2:]:
        _, first, _, sets, _, _ = re.split(r"(?<!\\)\|", row)
        names, groups = re.findall(r"`(\w+)`", first), sets.split(";")
        assert len(groups) in (1, len(names)), row
        for name, group in zip(names, groups * len(names) if len(groups) == 1 else groups, strict=True):
            found[name] = () if "none" in group else tuple(map(str.strip, group.split(",")))
    assert found == {name: spec.sets for name, spec in MEASURES.items()}


def test_the_guide_names_every_set() -> None:
    guide = (ROOT / "docs" / "guides" / "read-the-numbers.md").read_text(encoding="utf-8")
    of_truth = guide.split("--measures truth\n```")[1].split("\n\n|")[1].split("\n\n")[0]
    for name in re.findall(r"\(`(\w+)`\)", of_truth):
        assert "truth" in MEASURES[name].sets, name
