"""What the report says, as plain text in tables and sections: the same for the page, for Markdown and for JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..measures.record import Record
from . import paper
from .claim_text import ClaimRow, claim_row, fewer, how_judged, tally
from .claims import check_all
from .deviations import deviations
from .load import Entry, Setting, Value, flatten, settings_of
from .numbers import DASH, interval, number
from .verdict import Result


class Cell(NamedTuple):
    """text: the value; small: beneath it; note: the number of a footnote; tone: names a colour."""

    text: str
    small: str = ""
    note: int | None = None
    tone: str = ""


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""
    """One sentence beneath it."""


class Column(NamedTuple):
    measure: str
    value: str
    title: str
    better: str = ""


class Details(NamedTuple):
    """All there is of one SAE."""

    title: str
    tables: list[Table]
    settings: list[tuple[str, str]]


_HIERARCHY = "Hierarchy: the share of parent-child pairs that meet both of the Tree SAE paper's conditions"
_LEVELS = "Agreement of neighbouring levels (HSAE)"
# What a reader must know of a block of columns.
_NOTES = {
    _HIERARCHY: (
        "A Tree SAE meets these conditions without having learned a hierarchy: where a child fires only with its "
        "parent, every direction found for the child points along the parent too. Read its scores beside those of the "
        "untrained SAE and of shuffled parents (benchmarks/hierarchy_nulls.py). Scores also rise with how often "
        "children fire, and fall the longer probes are trained."
    ),
    _LEVELS: (
        "Of a Tree SAE P(parent | child) is 1 by construction. The Hamming distance grows with the number of features "
        "that are active, so SAEs of different L0 are compared by it per active feature only; where parents have few "
        "children, as in a Tree SAE, neither says much."
    ),
}
_BLOCKS: tuple[tuple[str, tuple[Column, ...]], ...] = (
    ("Reconstruction and sparsity", (
        Column("reconstruction", "fve", "FVE", "↑"),
        Column("reconstruction", "fve_tree", "variance explained by the Tree SAE paper's formula", "↑"),
        Column("cross_entropy", "ce_loss_score", "CE loss score", "↑"),
        Column("cross_entropy", "spliced", "CE in nats", "↓"),
        Column("sparsity", "l0", "L0"),
        Column("dead", "dead_share", "dead features", "↓"),
    )),
    (_HIERARCHY, (
        Column("hierarchy", "tree", "by its forest", "↑"),
        Column("hierarchy", "mcs", "by MCS, as in the paper", "↑"),
        Column("hierarchy", "mcs_unconditional", "by MCS, any parents", "↑"),
        Column("hierarchy", "matched_tree", "n best, by its forest", "↑"),
        Column("hierarchy", "matched_mcs", "n best, by MCS", "↑"),
        Column("reconstruction_score", "s_res", "S_res of its edges", "↑"),
    )),
    ("What hierarchy breaks in flat SAEs", (
        Column("absorption", "full_absorption", "full absorption", "↓"),
        Column("absorption", "mean_absorption_fraction", "absorption fraction", "↓"),
        Column("absorption", "splitting", "splitting", "↓"),
        Column("composition", "mean", "composition", "↓"),
        Column("cooccurrence", "iou", "siblings together", "↓"),
        Column("mcs", "k_all_pairs", "|k|", "↓"),
    )),
    ("Interpretability and probing", (
        Column("autointerp", "autointerp_score", "AutoInterp", "↑"),
        Column("pair_judge", "yes", "pairs judged related", "↑"),
        Column("sparse_probing", "sae_top_1", "sparse probing, top 1", "↑"),
        Column("sparse_probing", "sae_top_5", "sparse probing, top 5", "↑"),
        Column("tpp", "tpp_20", "TPP, 20 features", "↑"),
    )),
    (_LEVELS, (
        Column("hsae", "hamming", "Hamming distance", "↓"),
        Column("hsae", "hamming_per_active", "Hamming distance per active feature", "↓"),
        Column("hsae", "p_parent_child", "P(parent | child)", "↑"),
        Column("hsae", "p_child_parent", "P(child | parent)", "↑"),
    )),
)  # fmt: skip


@dataclass
class Footnotes:
    """Reasons, each numbered once."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True, eq=False)
class Page:
    """All that the templates show."""

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
    """The page, and what became of the claims. SAEs stand in the order of their systems, sizes and L0."""
    settings, notes = settings_of(entries), Footnotes()
    entries = [entry for setting in settings for entry in setting.entries]
    results = check_all(settings)
    shared, compared = _compared(entries)
    summary = [table for title, columns in _BLOCKS if (table := _block(title, columns, settings, notes))]
    columns = [column for _, block in _BLOCKS for column in block]
    absent = {c.measure for c in columns if not any(c.measure in entry.records for entry in entries)}
    made = [result for result in results if result.findings]
    topics = dict.fromkeys(result.claim.topic for result in made)
    page = Page(
        title=f"{len(entries)} SAE{'s' if len(entries) > 1 else ''} compared",
        shared=shared,
        compared=compared,
        summary=summary,
        unmeasured=sorted(absent),
        footnotes=notes.texts,
        verdicts=tally(results),
        how_judged=how_judged(results),
        deviations=_deviations(settings),
        claims=[(topic, [claim_row(r) for r in made if r.claim.topic == topic]) for topic in topics],
        missing_claims=[(r.claim.text, r.why) for r in results if not r.findings],
        paper_tables=[
            t for t in (_l0_by_layer(settings), _cooccurrence(settings), _levels(settings)) if t.rows
        ],
        details=[_details(entry) for entry in entries],
        commands=_commands(entries, runs, out),
        version=__version__,
    )
    return page, results


# -- numbers as text


def cell(value: Value, notes: Footnotes) -> Cell:
    if value.value is None:
        return Cell(DASH, note=notes.number(value.why or "undefined"))
    return Cell(number(value.value), interval(value))


def mean_cell(setting: Setting, value: Value, notes: Footnotes) -> Cell:
    made = cell(value, notes)
    small = "; ".join(text for text in (made.small, fewer(setting, value)) if text)
    return made._replace(small=small, tone="mean")


# -- what was compared


def _compared(entries: Sequence[Entry]) -> tuple[list[tuple[str, str]], Table]:
    """What all SAEs have in common, and a table of what differs between them."""
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
    # Labelled texts are not what was trained on.
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
    title: str, columns: Sequence[Column], settings: Sequence[Setting], notes: Footnotes
) -> Table | None:
    entries = [entry for setting in settings for entry in setting.entries]
    measured = [c for c in columns if any(c.measure in entry.records for entry in entries)]
    able = [entry for entry in entries if any(c.measure in entry.records for c in measured)]
    if not able:
        return None
    rows = []
    for setting in settings:
        mine = [entry for entry in setting.entries if entry in able]
        rows += [
            [Cell(entry.label), *(cell(entry.value(c.measure, c.value), notes) for c in measured)]
            for entry in mine
        ]
        if len({entry.config.seed for entry in mine}) > 1:
            mean = Cell(f"mean of {setting.n_seeds} seeds", setting.system.title, tone="mean")
            values = [mean_cell(setting, setting.value(c.measure, c.value), notes) for c in measured]
            rows.append([mean, *values])
    rest = ", ".join(entry.label for entry in entries if entry not in able)
    note = " ".join(filter(None, (_NOTES.get(title, ""), f"Not measured: {rest}." if rest else "")))
    return Table(title, ["SAE", *(f"{c.title} {c.better}".strip() for c in measured)], rows, note)


# -- the papers' settings and tables


def _deviations(settings: Sequence[Setting]) -> Table:
    return Table(
        "Settings that differ from the papers'",
        ["SAE", "the paper's, as a preset", "what is read", "SAE", "optimizer"],
        [[Cell(part or DASH) for part in row] for row in deviations(settings)],
        "In brackets the preset's. null: by the length of the run or, of a dictionary's layers, all. What a paper does "
        "not give is the preset's own choice: docs/presets.md.",
    )


def _l0_by_layer(settings: Sequence[Setting]) -> Table:
    rows = []
    for s in settings:
        values = [s.value("sparsity", f"l0_layer_{i}").value for i in range(s.system.layers)]
        if s.system.layers > 1 and any(v is not None for v in values):
            theirs = paper.L0_BY_LAYER.get((s.system.kind, s.system.layers), ())
            near = min(theirs, key=lambda of: abs(sum(of) - s.l0), default=())
            rows.append([
                Cell(s.label), Cell(s.system.title), Cell(", ".join(map(number, values))),
                Cell(", ".join(f"{x:g}" for x in near) or DASH, tone="paper"),
            ])  # fmt: skip
    return Table(
        "L0 by layer (Tables 1 and 2)",
        ["SAE", "system", "measured here", "paper, at the nearest L0"],
        rows,
        f"Paper: {paper.TREE_PAPER}.",
    )


def _cooccurrence(settings: Sequence[Setting]) -> Table:
    rows = []
    for s in settings:
        siblings, k = s.value("cooccurrence", "iou"), s.value("mcs", "k_all_pairs")
        if siblings.value is None and k.value is None:
            continue
        key = (s.system.kind, s.system.layers)
        theirs = [
            paper.BY_L0[name].get(key, ()) for name in (("cooccurrence", "iou"), ("mcs", "k_all_pairs"))
        ]
        shown = [Cell(", ".join(f"{x:g}" for x in numbers) or DASH, tone="paper") for numbers in theirs]
        rows.append([
            Cell(s.label), Cell(number(siblings.value), interval(siblings)), shown[0],
            Cell(number(k.value), interval(k)), shown[1],
        ])  # fmt: skip
    return Table(
        "Siblings that fire together, and |k| (Tables 3 and 4)",
        ["SAE", "siblings together", "paper, L0 32 to 80", "|k|", "paper, L0 32"],
        rows,
        f"Paper: {paper.TREE_PAPER}. The siblings of a flat SAE are those of the forest inferred for it.",
    )


def _levels(settings: Sequence[Setting]) -> Table:
    names = ("hamming", "p_parent_child", "p_child_parent")
    rows = []
    for s in settings:
        values = [s.value("hsae", name) for name in names]
        if s.system.kind in paper.HSAE_TABLE and any(v.value is not None for v in values):
            fve = s.value("reconstruction", "fve_legacy")
            rows.append(
                [
                    Cell(s.label),
                    Cell(number(s.l0)),
                    *(Cell(number(v.value), interval(v)) for v in (fve, *values)),
                ]
            )
    if rows:
        for kind, name in (("hsae", "HSAE"), ("hsae-baseline", "baseline")):
            for r in paper.HSAE_TABLE[kind]:
                theirs = (r.l0, r.fve, r.hamming, r.p_parent_child, r.p_child_parent)
                rows.append([Cell(f"paper: {name}, {r.where}", tone="paper"),
                             *(Cell(f"{x:g}", tone="paper") for x in theirs)])  # fmt: skip
    return Table(
        "Levels of HSAE and its baseline (HSAE paper, Table 3)",
        ["SAE", "L0", "variance explained", "Hamming distance", "P(parent | child)", "P(child | parent)"],
        rows,
        "L0 here is that of all levels together, in the paper that of each level. Variance explained is SAEBench's "
        "explained_variance_legacy (here fve_legacy), as in the paper.",
    )


# -- everything


def _details(entry: Entry) -> Details:
    tables = []
    for name, record in entry.records.items():
        rows = []
        for key in record.value:
            value = entry.value(name, key)
            rows.append(
                [Cell(key), Cell(number(value.value)), Cell(interval(value)), Cell(value.why or value.unit)]
            )
        method = record.settings.get("interval_method", "")
        tables.append(
            Table(
                name, ["value", "", "95 % interval", "unit, or why there is none"], rows,
                f"{record.tokens:,} tokens. Interval: {method or 'unknown'}.",
            )
        )  # fmt: skip
    lines: dict[str, str] = {}
    for record in entry.records.values():
        config = record.settings.get("config", {})
        own = {f"{record.measure}.{k}": v for k, v in config.items()} if isinstance(config, dict) else {}
        lines |= flatten({k: v for k, v in record.settings.items() if k not in ("config", "interval_method")})
        lines |= flatten(own)
    return Details(f"{entry.label} ({entry.system.title})", tables, list(lines.items()))


def _commands(entries: Sequence[Entry], runs: Iterable[Path], out: Path) -> list[str]:
    commands = []
    runs = list(dict.fromkeys(runs))
    for run in runs:
        place = shlex.quote(str(run))
        commands.append(f"saeforest train --config {shlex.quote(str(run / 'config.yaml'))} --out {place}")
        measures: dict[str, list[str]] = {}
        for entry in entries:
            for name, record in entry.records.items() if entry.run == run else ():
                of_same = measures.setdefault(_options(record), [])
                of_same += [] if name in of_same else [name]
        commands += [
            f"saeforest eval {place} --measures {','.join(m)}{options}" for options, m in measures.items()
        ]
    places = " ".join(shlex.quote(str(run)) for run in runs)
    return [*commands, f"saeforest compare {places} --out {shlex.quote(str(out))}"]


def _options(record: Record) -> str:
    """How a measurement was asked for: tokens, reading and judge. All else is the default, or with the record."""
    settings, given = record.settings, []
    tokens, reading, config = (settings.get(key) for key in ("tokens_read", "reading", "config"))
    # Labelled texts are as many as they are: their tokens are nobody's choice.
    if isinstance(tokens, int) and "train_texts" not in settings:
        given.append(("tokens", str(tokens)))
    if reading and reading != "recommended":
        given.append(("preset", str(reading)))
    judge = config.get("judge") if isinstance(config, dict) else None
    if isinstance(judge, dict) and judge.get("model"):
        given += [(f"judge.{key}", str(judge[key])) for key in ("endpoint", "model") if judge.get(key)]
    return "".join(f" --{key} {shlex.quote(value)}" for key, value in given)


def to_json(entries: Sequence[Entry], results: Sequence[Result], files: Sequence[str]) -> dict[str, Any]:
    """All values: SAE -> measure -> value; and what became of the claims."""
    return {
        "version": __version__,
        "saes": {
            entry.label: {
                "run": str(entry.run),
                "name": entry.name,
                "system": entry.system.title,
                "seed": entry.config.seed,
                "measures": {
                    record.measure: {
                        name: {
                            "value": value,
                            "interval": record.interval[name] and list(record.interval[name] or ()),
                            "tokens": record.tokens,
                            "unit": record.unit_of(name),
                            **({"null": record.null[name]} if value is None else {}),
                        }
                        for name, value in record.value.items()
                    }
                    for record in entry.records.values()
                },
            }
            for entry in entries
        },
        "claims": [
            {
                "claim": result.claim.text,
                "source": result.claim.source,
                "verdict": result.verdict.value,
                "null": result.claim.null.why if result.claim.null else "",
                "why": result.why,
                "paper": result.paper,
                "findings": [
                    {
                        "left": finding.left.label,
                        "right": finding.right.label if finding.right else None,
                        "values": [finding.left_value.value, finding.right_value.value],
                        "difference": list(finding.difference),
                        "verdict": finding.verdict.value,
                        "note": finding.note,
                    }
                    for finding in result.findings
                ],
            }
            for result in results
        ],
        "figures": list(files),
    }
