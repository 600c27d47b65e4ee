"""Tables that compare the SAEs of a report with the papers' settings and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from .deviations import deviations
from .numbers import DASH, number
from .papers import PaperTable, papers, reported
from .seed_groups import SeedGroup
from .tables import Cell, Footnotes, Table, cell


def deviations_table(groups: Sequence[SeedGroup]) -> Table:
    """The settings of each SAE that differ from the nearest one in a paper."""
    return Table(
        "Settings that differ from the papers'",
        ["SAE", "nearest preset of a paper", "data", "SAE settings", "optimizer"],
        [[Cell(part or DASH) for part in row] for row in deviations(groups)],
        "The preset's values are in parentheses. null: derived from the length of the run or, for layers, all of them. "
        "Settings that a paper does not give are the preset's own choice: see docs/presets.md.",
    )


def paper_tables(groups: Sequence[SeedGroup], notes: Footnotes) -> list[Table]:
    """The papers' tables, for which something was measured here."""
    tables = [_l0_by_layer(groups), _cooccurrence(groups, notes)]
    tables += [_table(table, groups, notes) for paper in papers().values() for table in paper.tables]
    return [table for table in tables if table.rows]


def _l0_by_layer(groups: Sequence[SeedGroup]) -> Table:
    found = [(paper, paper.l0_by_layer.by_l0) for paper in papers().values() if paper.l0_by_layer]
    rows = []
    for s in groups:
        values = [s.value("sparsity", f"l0_layer_{i}").value for i in range(s.system.layers)]
        if s.system.layers > 1 and any(v is not None for v in values):
            theirs = [of for _, by in found for of in by.get(s.system.kind, {}).get(s.system.layers, ())]
            near = min(theirs, key=lambda of: abs(sum(of) - s.l0), default=())
            rows.append([
                Cell(s.label), Cell(s.system.title), Cell(", ".join(map(number, values))),
                Cell(", ".join(f"{x:g}" for x in near) or DASH, tone="paper"),
            ])  # fmt: skip
    return Table(
        "L0 by layer (Tables 1 and 2)",
        ["SAE", "system", "measured here", "paper, at the nearest L0"],
        rows,
        f"Paper: {'; '.join(paper.trained for paper, _ in found)}.",
    )


def _cooccurrence(groups: Sequence[SeedGroup], notes: Footnotes) -> Table:
    papers_own = [reported("cooccurrence", "iou"), reported("mcs", "k_all_pairs")]
    rows = []
    for s in groups:
        siblings, k = s.value("cooccurrence", "iou"), s.value("mcs", "k_all_pairs")
        if siblings.value is None and k.value is None:
            continue
        theirs = [of.series.get((s.system.kind, s.system.layers), ()) if of else () for of in papers_own]
        shown = [Cell(", ".join(f"{x:g}" for x in numbers) or DASH, tone="paper") for numbers in theirs]
        rows.append([
            Cell(s.label), cell(s, "cooccurrence", "iou", notes), shown[0],
            cell(s, "mcs", "k_all_pairs", notes), shown[1],
        ])  # fmt: skip
    trained = "; ".join(dict.fromkeys(of.paper.trained for of in papers_own if of))
    return Table(
        "Co-firing of siblings, and |k| (Tables 3 and 4)",
        ["SAE", "co-firing of siblings", "paper, L0 32 to 80", "|k|", "paper, L0 32"],
        rows,
        f"Paper: {trained}. For a flat SAE, siblings are those of the forest inferred for it.",
    )


def _table(table: PaperTable, groups: Sequence[SeedGroup], notes: Footnotes) -> Table:
    """A table of a paper, with rows of the same systems measured here above the paper's rows, if there are any."""
    rows = []
    for s in groups:
        values = [s.value(c.measure, c.value) for c in table.columns]
        own = (v for v, c in zip(values, table.columns, strict=True) if c.measure == table.measure)
        if s.system.kind in table.rows and any(v.value is not None for v in own):
            rows.append([
                Cell(s.label), Cell(number(s.l0)), *(cell(s, c.measure, c.value, notes) for c in table.columns),
            ])  # fmt: skip
    if rows:
        for theirs in table.rows.values():
            rows += [
                [Cell(f"paper: {theirs.name}, {row.where}", tone="paper"),
                 *(Cell(f"{x:g}", tone="paper") for x in row.numbers)]
                for row in theirs.rows
            ]  # fmt: skip
    return Table(table.title, ["SAE", "L0", *(c.title for c in table.columns)], rows, table.note)
