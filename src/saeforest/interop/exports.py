"""The folders that exports to other tools are written to: whole or absent, and never over anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..config import TrainConfig
from ..errors import InputError
from ..files import atomic_folder, read_json, write_json
from ..kept_forest import digest, forest_of
from ..run_folder import RunFolder, check_export_folder
from ..saes import SAE
from ..structure.forest import Forest

#: In every folder that an export wrote: which format, of which SAE, and what was lost on the way.
ABOUT = "saeforest-export.json"
#: The forest, which no other tool has a place for.
HIERARCHY = "hierarchy.json"


@dataclass(frozen=True)
class Exported:
    """What an export wrote. path: its folder; about: what is kept in `saeforest-export.json`."""

    path: Path
    about: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


#: Number of tokens that an export reads by default, at most.
MOST_TOKENS = 600_000


class OfRun(NamedTuple):
    """An SAE of a run, as exports need it. forest: learned, or inferred for it."""

    name: str
    config: TrainConfig
    sae: SAE
    forest: Forest

    @property
    def tokens(self) -> int:
        """Number of tokens to read unless told otherwise: as many as in training, up to `MOST_TOKENS`."""
        return min(MOST_TOKENS, self.config.tokens)


def of_run(run: RunFolder | Path, sae: str | None = None, device: str | None = None) -> OfRun:
    """An SAE of a run. sae: its name, if the run has several. device: None for the one it was trained on.

    Raises InputError if the folder is not a run with such an SAE.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    config, trained = folder.load(sae, device)
    name = sae or folder.names()[0]
    return OfRun(name, config, trained, forest_of(trained, folder.forest(name))[0])


def check_out(out: Path, force: bool) -> None:
    """Raise InputError if an export cannot be written to `out`. Nothing but an earlier export is ever replaced.

    force: whether an earlier export is replaced.
    """
    check_export_folder(out, is_export, force=force)


def is_export(folder: Path) -> bool:
    """Whether an export wrote this folder."""
    with suppress(InputError):
        return isinstance(read_json(folder / ABOUT), dict)
    return False


@contextmanager
def export_folder(
    out: Path, format: str, sae: SAE, about: dict[str, Any], *, force: bool = False
) -> Iterator[Path]:
    """Yield a temporary folder for an export in a format. If the block succeeds, it becomes `out`.

    about: what to keep in `saeforest-export.json`; the block may add to it.

    Raises InputError if `out` cannot be written to: see `check_out`.
    """
    check_out(out, force)
    with atomic_folder(out) as folder:
        yield folder
        write_json(
            folder / ABOUT,
            {
                "format": format,
                "saeforest": __version__,
                "sae": digest(sae),
                "metadata": sae.metadata,
                **about,
            },
        )


def write_hierarchy(folder: Path, forest: Forest) -> None:
    """Write the forest beside an export: the parent of every feature (-1: none), and the sizes of the layers."""
    write_json(
        folder / HIERARCHY, {"layer_sizes": list(forest.layer_sizes), "parent": forest.parent.tolist()}
    )
