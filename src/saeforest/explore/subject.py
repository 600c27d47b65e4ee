"""What is explored: an SAE, what it reads, and where what is made of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..activations import ActivationReader
from ..config import TrainConfig, resolve_device
from ..errors import InputError
from ..interop import load
from ..kept_forest import ABOUT as FOREST
from ..kept_forest import forest_of
from ..run_folder import RunFolder
from ..saes import SAE
from ..session import check_site, open_reader, reading_config
from ..structure.forest import Forest
from .index.index import MANIFEST, read_about

#: Default number of tokens of text that an index is made from.
INDEX_TOKENS = 600_000


@dataclass(frozen=True)
class Place:
    """Where an index is, and what belongs to it: in a run, or in a folder of its own.

    unfinished: what was counted for an index that is being made. forest: one that was inferred for a flat SAE.
    annotations: the file of what a person noted. judge: what a judge replied.
    """

    folder: Path
    index: Path
    unfinished: Path
    forest: Path
    annotations: Path
    judge: Path

    @classmethod
    def in_run(cls, run: RunFolder, name: str) -> Place:
        return cls(
            run.path,
            run.index(name),
            run.unfinished_index(name),
            run.forest(name),
            run.annotations(name),
            run.eval(name),
        )

    @classmethod
    def alone(cls, folder: Path) -> Place:
        parts = ("index", "index.unfinished", "forest", "annotations.sqlite", "judge")
        return cls(folder, *(folder / part for part in parts))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, no other process can make this index. Raises InputError if one is doing so."""
        with RunFolder(self.folder).claimed(self.index):
            yield


@dataclass(frozen=True)
class Subject:
    """An SAE that is explored. It is loaded once, and so is its language model, when it is first needed.

    config: what the SAE reads: language model, site and text. run: None for an SAE without a run.
    name: of the SAE in its run; without a run, what it was loaded from.
    """

    sae: SAE
    config: TrainConfig
    place: Place
    name: str
    run: RunFolder | None = None

    @classmethod
    def of_run(
        cls, run: RunFolder | Path | str, sae: str | None = None, device: str | None = None
    ) -> Subject:
        """An SAE of a run.

        sae: its name; None for the only one. device: of SAE and language model; None for that of the training.

        Raises InputError if the folder is not a run with a trained SAE.
        """
        run = run if isinstance(run, RunFolder) else RunFolder(Path(run))
        config, trained = run.load(sae, device)
        name = sae or run.names()[0]
        return cls(trained, config, Place.in_run(run, name), name, run)

    @classmethod
    def alone(
        cls,
        source: str | Path,
        out: Path,
        *,
        model: str = "",
        site: str = "",
        data: str = "",
        device: str | None = None,
    ) -> Subject:
        """An SAE without a run, wherever `saeforest.load` finds it.

        out: the folder for its index, forest and notes: one that is new, empty, or of an earlier call.
        model, site, data: language model, site and text that the SAE reads. By default as in its metadata or, there
            being none, as in the index in `out`; and the packaged text.
        device: of SAE and language model; None for the best available.

        Raises InputError if there is no such SAE, `out` holds anything else, or model or site are not known.
        """
        place = Place.alone(out)
        if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_ours(place)):
            raise InputError(f"{out}: exists and holds no index; choose a new folder for what is made")
        sae = load(source)
        if (place.index / MANIFEST).is_file():
            about, _ = read_about(place.index)
            sae.metadata = {"model_name": about.model, "hook_name": about.site} | sae.metadata
        config = reading_config(sae, str(source), INDEX_TOKENS, model, site, data, device)
        return cls(sae.to(resolve_device(config.device)), config, place, str(source))

    @property
    def forest(self) -> tuple[Forest, str]:
        """The forest to show, and where it comes from, in a few words (`kept_forest.forest_of`)."""
        return forest_of(self.sae, self.place.forest)

    @property
    def has_inferred(self) -> bool:
        """Whether a forest inferred for an SAE is kept, which may be another SAE."""
        return (self.place.forest / FOREST).exists()

    @cached_property
    def reader(self) -> ActivationReader:
        """The language model at the SAE's site. Raises InputError if it cannot be loaded, or does not fit the SAE."""
        reader = open_reader(self.config)
        check_site(self.sae, reader)
        if self.run is None:  # whose metadata may say less
            known = {**reader.lm.identity.to_dict(), "hook_name": self.config.site}
            self.sae.metadata = known | self.sae.metadata
        return reader


def _is_ours(place: Place) -> bool:
    return any(path.exists() for path in (place.index, place.unfinished, place.forest))
