"""The folder of a run: the one place that knows where its files are.

one SAE               several SAEs
RUN/config.yaml       RUN/config.yaml          configuration
RUN/model.json        RUN/model.json           which language model was read
RUN/checkpoints/      RUN/checkpoints/         while it trains
RUN/activations/      RUN/activations/         while it trains
RUN/sae/              RUN/sae/NAME/            trained SAE
RUN/log.jsonl         RUN/logs/NAME/log.jsonl  training log; allocations.jsonl beside it
RUN/sinks/            RUN/sinks/               what else shows the log (`train --log`): which remote runs, local files
RUN/eval/             RUN/eval/NAME/           records of measures
RUN/forest/           RUN/forest/NAME/         forest inferred for an SAE that learns none
RUN/forest.untrained/ RUN/forest.untrained/NAME/  the same for that SAE before training, a null
RUN/index/            RUN/index/NAME/          what the explorer shows
RUN/annotations.sqlite  RUN/annotations/NAME.sqlite  labels, notes and ratings by a person
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from .claim import claimed
from .config import TrainConfig, load_config, resolve_device, save_config
from .errors import InputError, command
from .saes import SAE, load_sae
from .saes.files import CFG, SAE_FOLDER

CONFIG = "config.yaml"
# How far above a folder the run is that it belongs to: RUN/eval/NAME, RUN/checkpoints/step-N.
_WITHIN_A_RUN = 2


@dataclass(frozen=True, repr=False)
class RunFolder:
    """A run's folder, which may be there or not.

    Each SAE of a run has a name: the one it was configured with or, where the run has a single SAE, its architecture.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}: {self._contents()})"

    def _contents(self) -> str:
        if not self.config_file.is_file():
            return "no run"
        try:
            config = self.config()
            saes = ", ".join(
                f"{name} of {sum(member.sae.layer_sizes):,} features"
                for name, member in config.members().items()
            )
            read = f"model {config.model}, site {config.site}" if config.model else "trained on a tensor"
            state = "" if self.is_trained() else ", not finished"
        except InputError as error:
            return f"not readable: {error}"
        return f"{saes}; {read}, {config.tokens:,} {'tokens' if config.model else 'activations'}{state}"

    @classmethod
    def around(cls, folder: Path) -> RunFolder | None:
        """The run that a folder is, or is a part of."""
        for above in (folder, *folder.parents[:_WITHIN_A_RUN]):
            if (run := cls(above)).config_file.is_file():
                return run
        return None

    # What a run has once

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    @property
    def model_file(self) -> Path:
        """Which language model the run reads, and how that fares on a short text."""
        return self.path / "model.json"

    @property
    def demo_file(self) -> Path:
        """The mark of a demo that is not finished."""
        return self.path / "demo.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def activations(self) -> Path:
        """Activations that wait to be trained on."""
        return self.path / "activations"

    @property
    def sinks(self) -> Path:
        """Files of the sinks that the training log goes to."""
        return self.path / "sinks"

    @property
    def sinks_file(self) -> Path:
        """Which remote run of a sink belongs to which SAE."""
        return self.sinks / "state.json"

    # What it has for each of its SAEs

    def sae(self, name: str) -> Path:
        return self._part(SAE_FOLDER, name)

    def logs(self, name: str) -> Path:
        """The folder of an SAE's training logs: the run itself where it has a single SAE."""
        return self._part("logs", name) if self.several else self.path

    @property
    def records(self) -> Path:
        """The records of all measures of all SAEs."""
        return self.path / "eval"

    def eval(self, name: str) -> Path:
        return self._part("eval", name)

    def record(self, name: str, measure: str) -> Path:
        """The file with the record of a measure."""
        return self.eval(name) / f"{measure}.json"

    def forest(self, name: str) -> Path:
        return self._part("forest", name)

    def untrained_forest(self, name: str) -> Path:
        """The forest inferred for the SAE from which the training of one that learns none started."""
        return self._part("forest.untrained", name)

    def index(self, name: str) -> Path:
        return self._part("index", name)

    def annotations(self, name: str) -> Path:
        """The file of what a person noted about the features."""
        return self.path / (f"annotations/{name}.sqlite" if self.several else "annotations.sqlite")

    def unfinished_index(self, name: str) -> Path:
        """What was counted for an index that is being made."""
        return self._part("index.unfinished", name)

    def _part(self, part: str, name: str) -> Path:
        return self.path / part / name if self.several else self.path / part

    # The same, told from a folder alone: the configuration may be damaged

    def name_of(self, part: Path) -> str | None:
        """NAME of a folder RUN/PART/NAME; None for RUN/PART and for the run itself."""
        parts = part.relative_to(self.path).parts
        return parts[1] if len(parts) == 2 else None

    def sae_beside(self, part: Path) -> Path:
        """The SAE that an index, a forest, records or logs in the run belong to."""
        return self._beside(part, SAE_FOLDER)

    def forest_beside(self, part: Path) -> Path:
        """The folder of the forest inferred for the SAE that an index in the run belongs to."""
        return self._beside(part, "forest")

    def _beside(self, part: Path, kind: str) -> Path:
        name = self.name_of(part)
        return self.path / kind / name if name else self.path / kind

    def has_results(self) -> bool:
        """Whether the folder holds what a run trained or measured, whatever its configuration is worth."""
        return any((self.path / part).is_dir() for part in (SAE_FOLDER, "checkpoints", "eval"))

    # What is in it

    def config(self) -> TrainConfig:
        """The run's configuration. Raises InputError where the folder is no run."""
        if not self.config_file.is_file():
            if (self.path / CFG).is_file():
                raise InputError(
                    f"{self.path}: the folder of an SAE; expected that of a run, which `saeforest train` makes. In "
                    "Python, saeforest.measure takes any SAE that saeforest.load reads"
                )
            raise InputError(f"{self.path}: no {CONFIG}; expected a run folder that `saeforest train` made")
        return load_config(self.config_file, of_run=True)

    def save_config(self, config: TrainConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        save_config(config, self.config_file)

    def names(self) -> list[str]:
        """The names of the run's SAEs. Raises InputError where the folder is no run."""
        return list(self.config().members())

    @cached_property
    def several(self) -> bool:
        """Whether the run was configured with several SAEs, so that each has folders of its own."""
        return bool(self.config().saes)

    def has_sae(self) -> bool:
        """Whether an SAE of the run was saved."""
        return (self.path / SAE_FOLDER).exists()

    def is_trained(self) -> bool:
        """Whether every SAE of the run is there."""
        return all((self.sae(name) / CFG).is_file() for name in self.names())

    def load(self, name: str | None = None, device: str | None = None) -> tuple[TrainConfig, SAE]:
        """The configuration of a trained SAE, as if it were alone, and the SAE.

        name:   of the SAE; None for the only one of the run.
        device: of the SAE, and in the configuration; None for the device it was trained on.

        Raises InputError where there is no such SAE.
        """
        config = self.config()
        if device is not None:
            config = replace(config, device=device)
        members = config.members()
        if not self.has_sae():
            again = command("train", "--resume", "--out", self.path)
            raise InputError(f"{self.path}: no trained SAE yet; finish it with `{again}`")
        if name is None and not config.saes:
            (name,) = members
        if name not in members:
            holds = "several SAEs; name one of them" if config.saes else f"no SAE named '{name}', but one"
            raise InputError(f"{self.path}: holds {holds}: {', '.join(members)}")
        return members[name], load_sae(self.sae(name)).to(resolve_device(config.device))

    @contextmanager
    def claimed(self, *parts: Path) -> Iterator[None]:
        """Within, no other process can claim the run, or these parts of it: records, forests, indexes.

        Whoever trains claims the run, whoever adds to a trained one only the parts that he writes: an evaluation and an
        index of one SAE may be made at the same time, two evaluations of it may not.

        Raises InputError where another process has claimed it.
        """
        with ExitStack() as claims:
            for part in parts or (self.path,):
                claims.enter_context(
                    claimed(self.path, part.relative_to(self.path).as_posix().removeprefix("."))
                )
            yield


def check_export_folder(out: Path, is_export: Callable[[Path], bool], *, force: bool) -> None:
    """Raise InputError if an export cannot be written to a folder. Nothing but an earlier export is ever replaced.

    is_export: whether a folder holds one. force: whether that is replaced.
    """
    for folder in (out.resolve(), *out.resolve().parents):
        if (run := RunFolder(folder)).config_file.is_file() and run.has_results():
            raise InputError(f"{out}: is inside the run {folder}; choose a folder outside of it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; expected a folder, new or empty")
    if not out.exists() or not any(out.iterdir()):
        return
    if not is_export(out):
        raise InputError(f"{out}: exists and is not empty; choose another folder")
    if not force:
        raise InputError(f"{out}: holds an export already; choose another folder, or replace it with `force`")
