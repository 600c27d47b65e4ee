"""What the first rank of a run tells the others before the first step."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..activations import Blocks, LiveActivations, load_memory, open_store
from ..activations.data import StoredData, data_of
from ..activations.sources import MemoryActivations
from ..config import TrainConfig, of_dict, to_dict
from ..errors import InputError
from ..ranks import Ranks
from ..run_folder import RunFolder
from ..stopping import NEVER
from .data import TrainingData, open_source
from .team import Division


class Told(NamedTuple):
    """What the first rank tells the others, which neither read the text nor look at the run's folder."""

    config: dict[str, Any]
    d_in: int
    d_out: int | None
    n_steps: int
    store: str | None
    """The folder with the activations; None if they are read from the language model during training."""
    in_memory: bool
    division: dict[str, Any]
    run: str | None
    """The folder of the run, where ranks write to it. None: only the first does."""


def tell(
    ranks: Ranks,
    config: TrainConfig,
    data: TrainingData,
    run: RunFolder,
    d_in: int,
    d_out: int | None,
    n_steps: int,
    division: Division,
) -> None:
    """On the first rank: tell the others what is trained on what, and share with them what is read during training."""
    if ranks.size == 1:
        return
    live = isinstance(data.blocks, LiveActivations)
    found = data_of(config.data)
    store = str(found.folder if isinstance(found, StoredData) else run.activations)
    in_memory = isinstance(data.blocks, MemoryActivations)
    written = division.shards > 1 and not division.whole_checkpoints
    told = Told(
        to_dict(config),
        d_in,
        d_out,
        n_steps,
        None if live else store,
        in_memory,
        asdict(division),
        str(run.path.resolve()) if written else None,
    )
    ranks.from_first(lambda: list(told))
    if isinstance(data.blocks, LiveActivations):
        data.blocks.ranks = ranks


def told(ranks: Ranks) -> tuple[TrainConfig, Told, Blocks]:
    """On the other ranks: what the first one tells, and the activations."""

    def nothing() -> list[Any]:
        raise AssertionError("the first rank tells")

    told = Told(*ranks.from_first(nothing))
    if told.run is not None and not Path(told.run).is_dir():
        raise InputError(
            f"{told.run}: this machine does not see the folder of the run, where each rank writes its shard of "
            "checkpoints; share the folder, or ask for whole checkpoints"
        )
    config = of_dict(told.config)
    if told.store is None:
        live = open_source(config).read(None, NEVER, lambda settled: None).blocks
        assert isinstance(live, LiveActivations)
        live.ranks = ranks
        return config, told, live
    try:
        store = open_store(told.store, config.data_seed, config.tokens)
    except InputError as error:
        raise InputError(
            f"{error}; all machines must see the folder of the run and of its activations"
        ) from None
    return config, told, load_memory(store, config.data_seed) if told.in_memory else store
