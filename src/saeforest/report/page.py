"""The content of the report as plain text in tables and sections, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from .claim_text import ClaimRow, claim_row, how_judged, tally
from .claims import check_all
from .columns import BLOCKS, NOTES, Column
from .commands import commands
from .correction import holm
from .load import Entry, flatten
from .nulls import in_order, without_nulls
from .numbers import DASH, interval, number
from .paper_tables import deviations_table, paper_tables
from .seed_groups import SeedGroup, seed_groups
from .tables import Cell, Footnotes, Table, cell, mean_cell
from .verdict import Result


class Details(NamedTuple):
    """All values and settings of one SAE."""

    title: str
    tables: list[Table]
    settings: list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Page:
    """All content that the templates show."""

    title: str
    shared: list[tuple[str, str]]
    compared: Table
    summary: list[Table]
    unmeasured: list[str]
    footnotes: list[str]
    verdicts: list[tuple[str, int]]
    how_judged: list[str]
    deviations: Table
    claims: list[tuple[str, list[ClaimRow]]]
    missing_claims: list[tuple[str, str]]
    paper_tables: list[Table]
    details: list[Details]
    commands: list[str]
    version: str


def build_page(entries: Sequence[Entry], runs: Sequence[Path], out: Path) -> tuple[Page, list[Result]]:
    """The page, and the results on the claims. SAEs are ordered by system, size and L0."""
    groups, notes = seed_groups(entries), Footnotes()
    entries = [entry for group in groups for entry in group.entries]
    results = check_all(groups)
    shared, compared = _compared(entries)
    summary = [table for title, columns in BLOCKS if (table := _block(title, columns, groups, notes))]
    columns = [column for _, block in BLOCKS for column in block]
    absent = {c.measure for c in columns if not any(c.measure in entry.records for entry in entries)}
    corrected = holm([result.p for result in results])
    made = [(result, p) for result, p in zip(results, corrected, strict=True) if result.findings]
    topics = dict.fromkeys(result.claim.topic for result, _ in made)
    page = Page(
        title=f"{len(entries)} SAE{'s' if len(entries) > 1 else ''} compared",
        shared=shared,
        compared=compared,
        summary=summary,
        unmeasured=sorted(absent),
        footnotes=notes.texts,
        verdicts=tally(results),
        how_judged=how_judged(results),
        deviations=deviations_table(groups),
        claims=[(topic, [claim_row(r, p) for r, p in made if r.claim.topic == topic]) for topic in topics],
        missing_claims=[(r.claim.text, r.why) for r in results if not r.findings],
        paper_tables=paper_tables(groups, notes),
        details=[_details(entry) for entry in entries],
        commands=commands(entries, runs, out),
        version=__version__,
    )
    return page, results


# -- what was compared


def _compared(entries: Sequence[Entry]) -> tuple[list[tuple[str, str]], Table]:
    """The settings that all SAEs share, and a table of those that differ."""
    facts = [_facts(entry) for entry in entries]
    keys = list(facts[0])
    common = [key for key in keys if key != "system" and len({fact[key] for fact in facts}) == 1]
    varying = [key for key in keys if key not in common]
    head = ["SAE", *varying]
    rows = [
        [Cell(entry.label), *(Cell(fact[key]) for key in varying)]
        for entry, fact in zip(entries, facts, strict=True)
    ]
    return [(key, facts[0][key]) for key in common], Table("", head, rows)


def _facts(entry: Entry) -> dict[str, str]:
    config = entry.config
    tokens = sorted({record.tokens for name, record in entry.records.items() if name != "dead_training"})
    edges = [entry.value("coverage", name).value for name in ("edges_measured", "edges_unmeasured")]
    n_edges = sum(edge for edge in edges if edge is not None)
    reading, judge = (
        {str(found) for record in entry.records.values() if (found := record.settings.get(key))}
        for key in ("reading", "judge")
    )
    # Records on labeled texts are left out: their data are not the text of the run.
    text = {
        str(r.settings["data"])
        for r in entry.records.values()
        if "data" in r.settings and "train_texts" not in r.settings
    }
    origin = {
        str(record.settings.get("forest", "")) for record in entry.records.values() if record.settings.get("forest")
    } - {"its own"}  # fmt: skip
    if entry.system.learns_forest:
        forest = "learned"
    else:
        forest = "; ".join(sorted(origin)) or "none"
    if any(edge is not None for edge in edges):
        forest += f", {n_edges:,.0f} edges"
    return {
        "system": entry.system.title,
        "features": f"{entry.d_sae:,}",
        "layers": " + ".join(f"{size:,}" for size in config.sae.layer_sizes),
        "k": " + ".join(map(str, config.sae.k_per_layer)),
        "measured L0": number(entry.value("sparsity", "l0").value),
        "training tokens": f"{config.tokens:,}",
        "epochs": str(config.epochs),
        "seed": str(config.seed),
        "model": config.model,
        "site": config.site,
        "text": ", ".join(sorted(text)) or config.data,
        "measured tokens": " to ".join(f"{n:,}" for n in dict.fromkeys((*tokens[:1], *tokens[-1:]))) or DASH,
        "reading": ", ".join(sorted(reading)) or DASH,
        "judge": ", ".join(sorted(judge)) or DASH,
        "forest": forest,
    }  # fmt: skip


# -- values side by side


def _block(
    title: str, columns: Sequence[Column], groups: Sequence[SeedGroup], notes: Footnotes
) -> Table | None:
    entries = [entry for group in groups for entry in group.entries]
    measured = [c for c in columns if any(c.measure in entry.records for entry in entries)]
    able = [entry for entry in entries if any(c.measure in entry.records for c in measured)]
    if not able:
        return None
    rows = []
    for group in groups:
        mine = [entry for entry in group.entries if entry in able]
        rows += [
            [Cell(entry.label), *(cell(entry, c.measure, c.value, notes) for c in measured)] for entry in mine
        ]
        if len({entry.seeds for entry in mine}) > 1:
            mean = Cell(f"mean of {group.n_seeds} seeds", group.system.title, tone="mean")
            values = [mean_cell(group, c.measure, c.value, notes) for c in measured]
            rows.append([mean, *values])
    rest = ", ".join(entry.label for entry in entries if entry not in able)
    note = " ".join(filter(None, (NOTES.get(title, ""), f"Not measured: {rest}." if rest else "")))
    return Table(title, ["SAE", *(f"{c.title} {c.better}".strip() for c in measured)], rows, note)


# -- everything


def _details(entry: Entry) -> Details:
    tables = []
    for name, record in entry.records.items():
        rows = []
        for key in in_order(name, record.value):
            value = entry.value(name, key)
            rows.append(
                [Cell(key), Cell(number(value.value)), Cell(interval(value)), Cell(value.why or value.unit)]
            )
        method, bare = record.settings.get("interval_method", ""), without_nulls(name, record.value)
        tables.append(
            Table(
                name, ["value", "", "95% interval", "unit, or reason if undefined"], rows,
                f"{record.tokens:,} tokens. Interval: {method or 'unknown'}. {bare}".strip(),
            )
        )  # fmt: skip
    lines: dict[str, str] = {}
    for record in entry.records.values():
        config = record.settings.get("config", {})
        own = {f"{record.measure}.{k}": v for k, v in config.items()} if isinstance(config, dict) else {}
        lines |= flatten({k: v for k, v in record.settings.items() if k not in ("config", "interval_method")})
        lines |= flatten(own)
    return Details(f"{entry.label} ({entry.system.title})", tables, list(lines.items()))
