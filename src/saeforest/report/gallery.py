"""All figures of the report: those that compare SAEs, and closer looks at individual ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ..measures.record import Record
from .curves import FIGURES
from .figures import SPECS, compared
from .load import Entry
from .panel import Panel
from .seed_groups import SeedGroup
from .style import styled


class Gallery(NamedTuple):
    """The panels, and a line for each figure that has no data."""

    panels: list[Panel]
    skipped: list[str]


def compare_figures(groups: Sequence[SeedGroup]) -> Gallery:
    """The figures that compare SAEs, as far as there are data for them."""
    makers: list[tuple[str, Callable[[Sequence[SeedGroup]], Panel | str]]] = [
        *((spec.title, partial(compared, spec)) for spec in SPECS),
        *FIGURES,
    ]
    gallery = Gallery([], [])
    with styled():
        for title, make in makers:
            made = make(groups)
            if isinstance(made, str):
                gallery.skipped.append(f"{title}: {made}")
            else:
                gallery.panels.append(made)
    return gallery


def closer_looks(entries: Sequence[Entry]) -> list[Panel]:
    """Figures of individual SAEs; keys and titles name the SAE.

    Raises InputError if a record lacks what its figures need.
    """
    from .feature_figures import geometry_panels, landscape_panels, probe_panels

    panels: list[Panel] = []
    makers: dict[str, Callable[[Record], list[Panel]]] = {
        "reconstruction_score": probe_panels,
        "geometry": geometry_panels,
    }
    with styled():
        for number, entry in enumerate(entries, 1):
            for measure, make in makers.items():
                if measure in entry.records:
                    panels += _of(entry, number, measure, make)
        if any(entry.system.gated for entry in entries):
            panels += landscape_panels()
    return list(_distinct(panels))


def _of(entry: Entry, number: int, measure: str, make: Callable[[Record], list[Panel]]) -> Iterator[Panel]:
    with entry.showing(measure):
        made = make(entry.records[measure])
    for panel in made:
        yield panel._replace(key=f"sae-{number}-{panel.key}", title=f"{entry.label}: {panel.title}")


def _distinct(panels: Sequence[Panel]) -> Iterator[Panel]:
    """Make keys usable as file names: plain characters, and unique."""
    seen: dict[str, int] = {}
    for panel in panels:
        key = re.sub(r"[^a-z0-9]+", "-", panel.key.lower()).strip("-")
        seen[key] = seen.get(key, 0) + 1
        yield panel._replace(key=key if seen[key] == 1 else f"{key}-{seen[key]}")
