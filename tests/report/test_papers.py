"""The papers' data files: that they are whole, and that a mistake in one is a line which names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from report_cases import BASELINE, HSAE, TREE
from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.presets import PRESETS
from saeforest.report import claims, papers, system
from saeforest.report.system import System, kind_of, kind_title
from saeforest.saes import SYSTEMS, AllocationConfig, SystemConfig

CACHED = (papers.papers, papers.ablations, claims.claims, system._kinds)


def test_every_number_belongs_to_an_l0_or_a_size() -> None:
    for paper in papers.papers().values():
        for numbers in paper.numbers:
            for by, places in ((numbers.by_l0, paper.l0), (numbers.by_size, paper.sizes)):
                for layers in by.values():
                    assert all(len(found) in (1, len(places)) for found in layers.values())
        for table in paper.tables:
            for rows in table.rows.values():
                assert all(len(row.numbers) == 1 + len(table.columns) for row in rows.rows)


def test_the_papers_say_what_their_text_says() -> None:
    tree, hsae = papers.papers().values()
    assert tree.series("absorption", "full_absorption")["tree", 4] == (0.1322, 0.1059, 0.1132, 0.079)
    assert tree.series("hierarchy", "mcs", "size")["matryoshka", 2] == (0.15, 0.16, 0.12)
    assert tree.series("hierarchy", "nothing") == {}
    assert (tree.layers_of("tree"), tree.layers_of("topk")) == ([2, 4], [1])
    assert hsae.tables[0].rows["hsae"].rows[1].numbers == (50.1, 0.713, 21.3, 0.769, 0.432)


def test_presets_of_the_papers_are_presets() -> None:
    for paper in papers.papers().values():
        assert paper.presets
        assert set(paper.presets) <= set(PRESETS)


@pytest.mark.parametrize(
    ("sae", "kind", "title"),
    [
        (TREE, "tree", "Tree SAE"),
        (replace(TREE, allocation=AllocationConfig(first=0)), "tree-fixed", "Tree SAE without reallocation"),
        (
            replace(TREE, allocation=AllocationConfig(root_reset_at=0)),
            "tree-fixed",
            "Tree SAE without reallocation",
        ),
        (replace(TREE, allocation=AllocationConfig(root_reset_at=0, until=0.5)), "tree", "Tree SAE"),
        (replace(TREE, gate="none"), "tree-no-gate", "Tree SAE without a gate"),
        (replace(TREE, layer_weights=0.0), "tree-one-loss", "Tree SAE with the last layer's loss alone"),
        (
            replace(TREE, allocation=AllocationConfig(rule="data", first=0)),
            "tree-from-data",
            "Tree SAE, parents from data",
        ),
        (HSAE, "hsae", "HSAE"),
        (BASELINE, "hsae-baseline", "HSAE baseline"),
        (replace(HSAE, constraint=0.0), "hsae", "HSAE"),
    ],
)
def test_a_configuration_tells_its_kind(sae: SystemConfig, kind: str, title: str) -> None:
    assert kind_of(TrainConfig(sae=sae)) == kind
    assert kind_title(kind) == title


def test_every_system_has_a_title_and_a_look_of_its_own() -> None:
    kinds = [*SYSTEMS, *papers.ablations()]
    assert len({kind_title(kind) for kind in kinds}) == len(kinds)
    assert len({System(kind, layers).color for kind in kinds for layers in (2, 4)}) == len(kinds) + sum(
        bool(sae.color_of_two_layers) for sae in SYSTEMS.values()
    )
    assert len({System(kind, 1).marker for kind in kinds}) == len(kinds)
    assert [s.kind for s in sorted((System(kind, 1) for kind in kinds), key=lambda s: s.rank)][:6] == [
        "tree", "tree-no-gate", "tree-from-data", "tree-one-loss", "tree-fixed", "hsae",
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the data files that a test may damage."""
    folder = shutil.copytree(papers.DATA, tmp_path / "data")
    for module in (papers, claims):
        monkeypatch.setattr(module, "DATA", folder)
    for function in CACHED:
        function.cache_clear()
    yield folder
    monkeypatch.undo()
    for function in CACHED:
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        ("1-tree-sae.yaml", lambda t: t.replace("l0: [32", "l0: [x"), "key 'l0.0': expected a valid number"),
        ("1-tree-sae.yaml", lambda t: t + "more: 1\n", "key 'more': Extra inputs"),
        ("1-tree-sae.yaml", lambda t: t.replace("topk:", "topq:"), "no such system: topq"),
        ("1-tree-sae.yaml", lambda t: t.replace("system: tree", "system: oak"), "no such system: oak"),
        ("2-hsae.yaml", lambda t: t + "  - [", "not valid YAML"),
        ("1-tree-sae.claims.yaml", lambda t: t.replace('relation: ">"', "relation: above"), "relation"),
        ("1-tree-sae.claims.yaml", lambda t: t.replace("{kind: topk", "{kind: topq"), "no such system: topq"),
        ("1-tree-sae.claims.yaml", lambda t: t.replace("needs_null: gate\n", "needs_null: gait\n"), "no such null"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line_that_names_it(
    data: Path, name: str, edit: Callable[[str], str], told: str
) -> None:
    path = data / name
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before
    with pytest.raises(InputError, match=told) as error:
        claims.claims()
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_of_claims_is_named(data: Path) -> None:
    (data / "2-hsae.claims.yaml").unlink()
    with pytest.raises(InputError, match=r"2-hsae\.claims\.yaml: no such file"):
        claims.claims()
