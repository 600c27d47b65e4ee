"""The files of a run: rows, the table, the plot, and what the machine could do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeforest.files import atomic_file

from .case import Case, Group
from .costs import counted, flops_per_bdf, least_seconds
from .machine import Machine
from .session import Measured

OURS = "saeforest"
_PLOTTED_TOKENS = 4096
_COLUMNS = ("library", "version", "system", "dtype", "tokens/s", "spread", "× fastest peer", "peak MB")
_COLUMNS += ("FLOPs / BdF", "share of limit")


def share_of_limit(result: Measured, machine: Machine) -> float:
    """The least time the machine could take for what is counted, as a share of the measured time."""
    least = least_seconds(result.case, machine.flops_per_s[result.case.dtype], machine.bytes_per_s)
    return least / result.median


def write(out: Path, results: Sequence[Measured], machine: Machine, about: dict[str, Any]) -> None:
    """`out`, and beside it the files of the same stem. Each is whole or as it was before; no plot if none can be."""
    _write(out, _json([result.row() for result in results]))
    _write(out.with_suffix(".md"), table(results, machine))
    _write(out.with_name(f"{out.stem}-machine.json"), _json(limits(results, machine, about)))
    if can_plot():
        plot(results, out.with_suffix(".png"))


def can_plot() -> bool:
    return find_spec("matplotlib") is not None


def _json(data: object) -> str:
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def limits(results: Sequence[Measured], machine: Machine, about: dict[str, Any]) -> dict[str, Any]:
    cases = [
        {
            "case": f"{result.case.name}, {result.case.group}",
            "flops": cost.flops,
            "bytes": cost.bytes,
            "flops_per_bdf": round(flops_per_bdf(result.case), 3),
            "share_of_limit": round(share_of_limit(result, machine), 4),
        }
        for result in results
        for cost in [counted(result.case)]
    ]
    return machine.describe() | about | {"cases": cases}


def grouped(results: Sequence[Measured]) -> dict[Group, list[Measured]]:
    groups: dict[Group, list[Measured]] = {}
    for result in results:
        groups.setdefault(result.case.group, []).append(result)
    return groups


def table(results: Sequence[Measured], machine: Machine) -> str:
    """Markdown: a heading and a table for each group of cases that are compared."""
    rates = ", ".join(f"{t} {rate / 1e9:,.0f} GFLOP/s" for t, rate in machine.flops_per_s.items())
    lines = [
        f"Measured on {machine.name}, {machine.threads} threads: matrix product {rates}; "
        f"copy {machine.bytes_per_s / 1e9:,.1f} GB/s.",
        "",
        "spread: interquartile range of the steps' seconds, as a share of their median. BdF: batch times d times "
        "width; a multiply-add is two FLOPs. share of limit: the least time the machine could take for the counted "
        "FLOPs (at the matrix product's rate) and bytes (at the copy's), as a share of the measured time.",
    ]
    for group, own in grouped(results).items():
        peers = [result for result in own if result.case.library != OURS]
        fastest = min((result.median for result in peers), default=None)
        lines += ["", f"### {group}", "", _line(_COLUMNS), _line(["---"] * 4 + ["---:"] * 6)]
        for result in sorted(own, key=lambda r: r.median):
            row, case = result.row(), result.case
            lines.append(
                _line(
                    [
                        case.library,
                        result.version,
                        case.system,
                        case.dtype,
                        f"{row['tokens_per_s']:,.0f}",
                        f"{result.spread:.1%}",
                        "" if fastest is None else f"{fastest / result.median:.2f}",
                        f"{result.peak_mb:,.0f}",
                        f"{flops_per_bdf(case):.2f}",
                        f"{share_of_limit(result, machine):.0%}",
                    ]
                )
            )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(results: Sequence[Measured], path: Path) -> None:
    """Seconds per 4,096 tokens against width: a panel for each task, d and batch; a line for each system and type."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    panels: dict[tuple[str, str, int, int], list[Measured]] = {}
    for result in results:
        case = result.case
        panels.setdefault((case.task, case.device, case.d, case.batch), []).append(result)
    if not panels:
        return
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.2 * columns, 4.6 * rows + 1.6), squeeze=False, layout="constrained"
    )
    handles: dict[str, Any] = {}
    for axis, ((task, device, d, batch), own) in zip(axes.flat, panels.items(), strict=False):
        lines: dict[tuple[str, str, str], list[Measured]] = {}
        for result in own:
            lines.setdefault(_line_of(result.case), []).append(result)
        for key, points in lines.items():
            points.sort(key=lambda r: r.case.width)
            seconds = [r.median * _PLOTTED_TOKENS / r.case.batch for r in points]
            (line,) = axis.plot([r.case.width for r in points], seconds, **_style(*key))
            handles.setdefault(" ".join(key), line)
        axis.set_xscale("log", base=10)
        axis.set_yscale("log")
        widths = sorted({r.case.width for r in own})
        axis.set_xticks(widths, [f"{w:,}" for w in widths])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(widths[0] / 1.3, widths[-1] * 1.3)
        axis.set_title(f"{task.replace('_', ' ')}, {device}, d {d:,}, batch {batch:,}")
        axis.set_xlabel("features")
        axis.set_ylabel(f"seconds per {_PLOTTED_TOKENS:,} tokens")
        axis.grid(True, which="both", alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)


def _line_of(case: Case) -> tuple[str, str, str]:
    return case.library, case.system, case.dtype


def _style(library: str, system: str, dtype: str) -> dict[str, Any]:
    """A color for each library, a marker for each system, dashes for bfloat16."""
    colors = {
        OURS: "#c1272d",
        "sae-lens": "#1f5fa8",
        "eai-sparsify": "#2e8b57",
        "dictionary-learning": "#b07aa1",
        "overcomplete": "#8c6d31",
    }
    return {
        "color": colors[library],
        "marker": {"topk": "o", "tree": "^", "matryoshka": "s"}[system],
        "linestyle": "--" if dtype == "bfloat16" else "-",
        "markerfacecolor": "none" if dtype == "bfloat16" else colors[library],
        "linewidth": 2.2 if library == OURS else 1.4,
        "markersize": 7,
    }
