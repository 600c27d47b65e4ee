"""Records as a table for a terminal that is 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from ..measures.record import Interval, Record


def table(records: Iterable[Record], title: str | None = None) -> Table:
    """A table with a block of rows for each record. An undefined value is shown as a dash, with the reason below."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    out.add_column("measure", no_wrap=True)
    out.add_column("value", justify="right", no_wrap=True)
    out.add_column("95% interval", justify="right", no_wrap=True)
    out.add_column("tokens", justify="right", no_wrap=True)
    out.add_column("unit", style="dim", no_wrap=True)
    reasons: dict[str, str] = {}
    for record in records:
        if out.row_count:
            out.add_row()
        out.add_row(Text(record.measure, style="bold"), "", "", f"{record.tokens:,}", "")
        for name, value in record.value.items():
            unit = record.unit_of(name)
            shown = "–" if value is None else _number(value, unit)
            note = "" if unit == "fraction" else unit
            if (why := record.null.get(name)) is not None:
                note = reasons.setdefault(why, f"({len(reasons) + 1})")
            out.add_row(f"  {name}", shown, _interval(record.interval[name], unit), "", note)
    out.caption = Text("\n".join(f"{number} {why}" for why, number in reasons.items()))
    out.caption_justify = "left"
    return out


def _number(value: float, unit: str) -> str:
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:#.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _interval(interval: Interval, unit: str) -> str:
    if interval is None:
        return ""
    return " to ".join(_number(end, unit).removesuffix(" %") for end in interval)
