"""The papers' own numbers (`data/*.yaml`) for comparison; they come from other models, text and larger dictionaries."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field

from ..errors import InputError
from ..files import read_yaml
from ..saes import SYSTEMS
from ..schema import Name, Schema, checked, listed

DATA = Path(__file__).parent / "data"
CLAIMS_SUFFIX = ".claims.yaml"

Key = tuple[str, int]
"""A system and its number of layers."""
Series = dict[Key, tuple[float, ...]]
ByLayers = dict[Name, dict[int, tuple[float, ...]]]
"""System -> layers -> numbers."""
Along = Literal["l0", "size"]


class Data(Schema):
    """Base class of the contents of files in `data/`, where an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ablation(Data):
    """A system with a component removed or replaced.

    settings: alternative sets of settings; an SAE is this ablation if all settings of one set have these values.
    shares: settings in which it must agree with the whole system to be compared with it, with their descriptions.
    """

    system: Name
    title: Name
    color: Annotated[str, Field(pattern="^#[0-9A-F]{6}$")]
    marker: Name = "o"
    settings: Annotated[tuple[dict[Name, float | str | None], ...], Field(min_length=1)]
    shares: dict[Name, Name] = Field(default_factory=dict)


class Numbers(Data):
    """A paper's numbers for one value of a measure. where: the figures or tables they are from."""

    measure: Name
    value: Name
    where: Name
    by_l0: ByLayers = Field(default_factory=dict)
    by_size: ByLayers = Field(default_factory=dict)


class LayerL0(Data):
    """System -> layers -> mean L0 of each layer, for each L0 and for the smallest and the largest size."""

    by_l0: dict[Name, dict[int, tuple[tuple[float, ...], ...]]]
    by_size: dict[Name, dict[int, tuple[tuple[float, ...], ...]]]


class TableColumn(Data):
    """A column of a paper's table, and the value of a measure that corresponds to it."""

    title: Name
    measure: Name
    value: Name


class TableRow(Data):
    """A row of a paper's table. where: the model and site; numbers: L0, then one for each column."""

    where: Name
    numbers: tuple[float, ...]


class TableRows(Data):
    """The rows of one system, and its name in the paper."""

    name: Name
    rows: tuple[TableRow, ...]


class PaperTable(Data):
    """A table of a paper. measure: SAEs with a record of it are shown in the table too."""

    title: Name
    note: Name
    measure: Name
    columns: tuple[TableColumn, ...]
    rows: dict[Name, TableRows]


class Paper(Data):
    """What a paper reports.

    trained, model: what its SAEs were trained on, in a few words; the language model.
    l0, sizes: values of L0 and sizes for which a series has numbers.
    measured_l0: measured L0 of systems that do not have the L0 of `l0`.
    presets: presets that train its systems.
    """

    name: Name
    link: Name
    trained: Name
    model: Name
    l0: tuple[float, ...] = ()
    measured_l0: dict[Name, tuple[float, ...]] = Field(default_factory=dict)
    sizes: tuple[float, ...] = ()
    ablations: dict[Name, Ablation] = Field(default_factory=dict)
    presets: tuple[Name, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    l0_by_layer: LayerL0 | None = None
    tables: tuple[PaperTable, ...] = ()

    def series(self, measure: str, value: str, along: Along = "l0") -> Series:
        """One number for each L0 or each size, by system; empty if the paper has none."""
        for numbers in self.numbers:
            if (numbers.measure, numbers.value) == (measure, value):
                by_layers = numbers.by_l0 if along == "l0" else numbers.by_size
                return {
                    (kind, layers): found for kind, by in by_layers.items() for layers, found in by.items()
                }
        return {}

    def layers_of(self, kind: str) -> list[int]:
        """The numbers of layers for which it reports a system, in ascending order."""
        return sorted({n for numbers in self.numbers for n in numbers.by_l0.get(kind, ())})

    def systems(self) -> set[str]:
        """All systems that it gives numbers for."""
        groups = [*(n.by_l0 for n in self.numbers), *(n.by_size for n in self.numbers), self.measured_l0]
        groups += [table.rows for table in self.tables]
        groups += [self.l0_by_layer.by_l0, self.l0_by_layer.by_size] if self.l0_by_layer else []
        return {kind for group in groups for kind in group}


class Reported(NamedTuple):
    """A series of numbers, and the paper it is from."""

    paper: Paper
    series: Series


@cache
def papers() -> dict[str, Paper]:
    """The papers by the names of their files, in the order of the report.

    Raises InputError, naming the file, if one is malformed or names an unknown system.
    """
    files = sorted(path for path in DATA.glob("*.yaml") if not path.name.endswith(CLAIMS_SUFFIX))
    found = {path.stem: checked(Paper, read_yaml(path), path) for path in files}
    known = {*SYSTEMS, *(kind for paper in found.values() for kind in paper.ablations)}
    for path, paper in zip(files, found.values(), strict=True):
        check_systems(paper.systems(), known, path)
        check_systems({ablation.system for ablation in paper.ablations.values()}, set(SYSTEMS), path)
    return found


def check_systems(systems: set[str], known: set[str], path: Path) -> None:
    """Raises InputError if a file names an unknown system."""
    if unknown := systems - known:
        raise InputError(f"{path}: no such system: {listed(unknown)}; expected some of {listed(known)}")


@cache
def ablations() -> dict[str, Ablation]:
    """The ablations of all papers, by name."""
    return {kind: ablation for paper in papers().values() for kind, ablation in paper.ablations.items()}


def reported(measure: str, value: str, along: Along = "l0") -> Reported | None:
    """The numbers of the first paper that reports the value; None if none does."""
    for paper in papers().values():
        if series := paper.series(measure, value, along):
            return Reported(paper, series)
    return None
