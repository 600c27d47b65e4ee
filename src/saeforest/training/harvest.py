"""Harvesting activations into a folder, to be used by any number of runs."""

from __future__ import annotations

from pathlib import Path

from ..activations import Harvest, StoredActivations, harvest_folder, open_store
from ..activations.sources import is_store
from ..activations.writer import JOURNAL, MODEL, PENDING
from ..config import TrainConfig
from ..errors import InputError
from ..files import write_json
from ..output import note
from ..session import about_activations, about_model, open_reader, read_tokens
from ..stopping import stopping
from .data import check_store
from .settle import settle_machine, settle_positions, settle_text
from .unfinished import claimed_run, is_free


def run_harvest(config: TrainConfig, out: Path) -> tuple[StoredActivations, Harvest]:
    """Read the activations of `config` into the folder `out`. Returns the store, and how long reading took.

    An earlier harvest with the same settings that was stopped is continued.

    Raises InputError if `out` holds anything else or is in use, or if something is wrong with the model or the text;
    Interrupted if a signal asks to stop.
    """
    config = settle_machine(config)
    with claimed_run(out), stopping("what was read") as stop:
        if not is_store(out) and not (out / JOURNAL).exists() and not is_free(out):
            raise InputError(f"{out}: exists and is not empty; choose another folder")
        reader = open_reader(config)
        config = settle_text(config, reader)
        tokens = read_tokens(config, reader, "train", config.tokens)
        config = settle_positions(config, reader, tokens)
        about = about_activations(config, tokens, reader)
        if is_store(out):
            store = open_store(out)
            check_store(store, about, "choose another folder")
            for unfinished in (
                JOURNAL,
                PENDING,
            ):  # left if the harvest was killed just before they were removed
                (out / unfinished).unlink(missing_ok=True)
            if not (out / MODEL).exists():
                write_json(out / MODEL, about_model(reader))
            note(f"{out}: this harvest is complete; nothing is left to do")
            return store, Harvest.of_record(store.harvest, store.n_rows, tokens.n_tokens)
        done = harvest_folder(reader, tokens, out, about, stop)
        write_json(out / MODEL, about_model(reader))
        return open_store(out), done
