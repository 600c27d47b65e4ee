"""What a release of a run holds: its files, and what is known of its SAEs.

The folders in the repository are those of the run (see `run_folder`), so that a download of the whole repository is a
run again, which every command takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import TrainConfig
from ..errors import InputError, command
from ..explore.index import Index
from ..files import listed_checksum, read_json
from ..interop.hub import COUNTED
from ..kept_forest import forest_of
from ..lm.identity import EMBEDDED, ModelIdentity, local_path
from ..measures.record import Record
from ..run_folder import CONFIG, RunFolder
from ..saes import SAE
from ..saes.files import CFG, SAE_FOLDER, WEIGHTS
from ..structure.forest import Forest
from ..text import hub_name, is_hub_source
from ..training.log import has_log, log_files, read_log

LIBRARY = "saeforest"
CARD = "README.md"
PREVIEW = "preview"
_MODEL = "model.json"
FORMAT_VERSION = 1
#: What a release may have at the root of its repository. Everything else there is somebody else's.
OWNED = (
    COUNTED, CARD, PREVIEW, CONFIG, _MODEL, SAE_FOLDER, "eval", "forest", "index", "logs",
    "log.jsonl", "allocations.jsonl",
)  # fmt: skip
#: The embedded model's name on the Hub.
_EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, eq=False)
class Member:
    """One SAE of a release.

    config:  its training configuration, as if it had been trained alone.
    forest, origin: its forest, and where that comes from: learned, inferred, or none.
    records: its records by measure.
    weights: checksum of its weights, by which a release knows whether another is of the same SAEs.
    """

    name: str
    folder: str
    config: TrainConfig
    sae: SAE
    forest: Forest
    origin: str
    records: dict[str, Record]
    has_index: bool
    weights: str


@dataclass(frozen=True, eq=False)
class Release:
    """A run as it is published. files: path in the repository -> file of the run."""

    run: RunFolder
    config: TrainConfig
    members: dict[str, Member]
    files: dict[str, Path]
    about_model: dict[str, Any]
    """What the run kept of its language model; empty for a run on a tensor."""

    @property
    def first(self) -> Member:
        """The first SAE, usually the only one."""
        return next(iter(self.members.values()))

    @cached_property
    def model(self) -> ModelIdentity | None:
        """The language model; None for a run on a tensor."""
        return ModelIdentity.from_dict(self.about_model) or ModelIdentity.from_dict(self.first.sae.metadata)

    @property
    def model_title(self) -> str:
        """The language model's name for a reader elsewhere: of a local one, only the last part of its path."""
        if self.model is None:
            return "unknown"
        return Path(self.model.name).name if is_local(self.model.name) else self.model.name

    @property
    def base_model(self) -> str | None:
        """The language model's name on the Hub; None for a local or unknown one."""
        if self.model is None or is_local(self.model.name):
            return None
        return _EMBEDDED_ON_HUB if self.model.name == EMBEDDED else self.model.name

    @property
    def data_set(self) -> str | None:
        """The name of the training text on the Hub; None if it comes from elsewhere."""
        source = self.first.sae.metadata.get("dataset", "")
        place = hub_name(source) if isinstance(source, str) and is_hub_source(source) else None
        return place.name if place else None

    def load_names(self, repo: str) -> dict[str, str]:
        """Name of each SAE -> what `saeforest.load` takes for it, once the release is in this repository."""
        return {name: f"{repo}:{name}" if len(self.members) > 1 else repo for name in self.members}

    def module(self, site: str) -> str | None:
        """A site as transformers names it; None if the run does not say, as runs of older versions."""
        sites = self.about_model.get("sites")
        found = sites.get(site) if isinstance(sites, dict) else None
        return found if isinstance(found, str) else None

    def local_paths(self) -> list[str]:
        """Paths of this machine that the run's own files name, and that a release shows therefore."""
        settings = {self.config.model, self.config.data}
        return sorted(text for text in settings if text and is_local(text))

    def to_json(self, card: str) -> dict[str, Any]:
        """The index of the release, its config.json. card: checksum of the model card that goes with it."""
        model = {} if self.model is None else self.model.to_dict()
        return {
            "library_name": LIBRARY,
            "format_version": FORMAT_VERSION,
            "version": __version__,
            **model,
            **({"model_name": self.model_title} if model else {}),
            **(
                {"hook_name": self.config.site, "hf_hook_name": self.module(self.config.site)}
                if model
                else {}
            ),
            **({"hook_name_out": self.config.target} if self.config.target else {}),
            "saes": {name: _about(member) for name, member in self.members.items()},
            "card": card,
        }


def _about(member: Member) -> dict[str, Any]:
    config = member.config.sae
    return {
        "folder": member.folder,
        "architecture": config.architecture,
        "d_in": member.sae.d_in,
        "d_sae": member.sae.d_sae,
        "layer_sizes": list(config.layer_sizes),
        "k_per_layer": list(config.k_per_layer),
        "normalize_activations": member.sae.config.normalize_activations,
        "forest": member.origin,
        "edges": member.forest.edges.shape[1],
        "records": sorted(member.records),
        "index": member.has_index,
        "weights": member.weights,
    }


def read_release(run: RunFolder) -> Release:
    """What a release of the run holds. Reads all of it, so that nothing damaged is published.

    Raises InputError if the folder is no run, its training is not finished, or a file is missing or damaged.
    """
    config = run.config()
    if not run.is_trained():
        again = command("train", "--resume", "--out", run)
        raise InputError(
            f"{run}: its training is not finished, so there is nothing to push; finish it with `{again}`"
        )
    members = {name: _member(run, name) for name in run.names()}
    about = read_json(run.model_file) if run.model_file.is_file() else {}
    files = {path.relative_to(run.path).as_posix(): path for path in _files(run, members)}
    return Release(run, config, members, files, about if isinstance(about, dict) else {})


def _member(run: RunFolder, name: str) -> Member:
    config, sae = run.load(name, "cpu")
    forest, origin = forest_of(sae, run.forest(name))
    has_index = run.index(name).exists()
    if has_index:
        Index.load(run.index(name), sae, forest)
    if has_log(run.logs(name)):
        read_log(run.logs(name))
    folder = run.sae(name)
    return Member(
        name,
        folder.relative_to(run.path).as_posix(),
        config,
        sae,
        forest,
        origin,
        {path.stem: Record.read(path) for path in _records(run, name)},
        has_index,
        listed_checksum(read_json(folder / CFG), WEIGHTS) or "",
    )


def _records(run: RunFolder, name: str) -> list[Path]:
    return sorted(run.eval(name).glob("*.json"))


def _files(run: RunFolder, members: dict[str, Member]) -> Iterator[Path]:
    """The files of a run that a release holds: no checkpoints, activations, or notes of a person."""
    yield run.config_file
    if run.model_file.is_file():
        yield run.model_file
    for name in members:
        yield from (run.sae(name) / file for file in (CFG, WEIGHTS))
        yield from filter(Path.is_file, log_files(run.logs(name)))
        yield from _records(run, name)
        for folder in (run.forest(name), run.index(name)):
            yield from sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))


def is_local(text: str) -> bool:
    """Whether a setting names a file or folder of this machine."""
    return local_path(text) is not None or Path(text).expanduser().is_absolute() or Path(text).exists()
