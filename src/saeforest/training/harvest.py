"""Harvesting activations into a folder, to be used by any number of runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..activations import ActivationReader, Harvest, StoredActivations, harvest_folder, open_store
from ..activations.backends import check_parity, open_backend
from ..activations.folder import Folder, LocalFolder, folder_at
from ..activations.plan import (
    ALONE,
    PLAN,
    Plan,
    Worker,
    check_agreed,
    digest_of_text,
    read_plan,
    remove_unfinished,
)
from ..activations.sources import is_store
from ..activations.writer import MODEL, TOKENS
from ..claim import claimed, remove_unheld
from ..config import TrainConfig
from ..errors import InputError
from ..files import remove_leftovers
from ..output import note
from ..schema import Element
from ..session import about_activations, about_model, open_reader, read_tokens
from ..stopping import stopping
from ..text import Tokens
from .data import check_store
from .settle import settle_machine, settle_positions, settle_text
from .unfinished import claimed_run, is_free

#: The index of a worker, their number, and its place among those of its machine, as launchers put it.
_LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class HarvestResult:
    """A complete store, and how long it took."""

    store: StoredActivations
    done: Harvest


def worker_of(index: int | None, of: int | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Which worker this process is: as given, otherwise as torchrun or SLURM says, otherwise the only one.

    Raises InputError if the numbers don't fit each other.
    """
    if index is not None or of is not None:
        return _worker("worker", index, "of", of)
    for index_name, of_name, _ in _LAUNCHERS:
        if index_name in environment and of_name in environment:
            given = [environment[name] for name in (index_name, of_name)]
            index, of = (int(text) if text.isdecimal() else None for text in given)
            worker = _worker(index_name, index, of_name, of)
            if worker.of > 1:
                note(f"{worker}, as {index_name} and {of_name} say")
            return worker
    return ALONE


def _worker(index_name: str, index: int | None, of_name: str, of: int | None) -> Worker:
    if index is None or of is None or not 0 <= index < of:
        raise InputError(
            f"{index_name} = {index}, {of_name} = {of}: expected both, which worker this is and how many there are; "
            "workers count from 0"
        )
    return Worker(index, of)


def device_of(device: str, environment: Mapping[str, str] = os.environ, n_gpus: int | None = None) -> str:
    """The device of a worker: if it is not given, each worker of a machine takes a GPU of its own."""
    n_gpus = torch.cuda.device_count() if n_gpus is None else n_gpus
    for index_name, _, local in _LAUNCHERS:
        if device == "auto" and n_gpus > 1 and index_name in environment:
            place = environment.get(local, "0")
            return f"cuda:{int(place) % n_gpus}" if place.isdecimal() else device
    return device


def run_harvest(
    config: TrainConfig,
    out: Path | str,
    *,
    worker: Worker = ALONE,
    element: Element = "auto",
    prepare: bool = False,
    backend: str = "transformers",
) -> HarvestResult | None:
    """Read the activations of `config` into the folder `out`, or at an address that fsspec knows.

    An earlier harvest with the same settings that was stopped is continued.

    worker:  which of the workers this is. All workers must have the same settings.
    element: how the numbers are stored.
    prepare: whether to stop when the text is tokenized, so that other workers need not do it again.
    backend: what computes the activations (`activations/backends.py`). Any but transformers must first agree with it.

    Returns the store if it is complete; None if shards of other workers are missing.

    Raises InputError if `out` holds anything else or is in use, if other workers have other settings, or if something
    is wrong with the model or the text; Interrupted if a signal asks to stop.
    """
    config, folder = settle_machine(config), folder_at(out)
    with _claimed(folder, worker), stopping("what was read") as stop:
        _check_free(folder)
        reader = open_reader(config)
        given = {
            "data": config.data,
            "tokens": config.tokens,
            "max_norm": config.activations.max_norm,
            "backend": backend,
        }
        plan = read_plan(folder)
        if plan is None:
            config = settle_text(config, reader)
            tokens = read_tokens(config, reader, "train", config.tokens)
            config = settle_positions(config, reader, tokens)
        else:
            config, tokens = _as_planned(plan, given, config, reader, folder)
        about = about_activations(config, tokens, reader)
        if is_store(folder):
            said = open_store(folder).manifest.get("backend", {"name": "transformers"})
            if said.get("name") != backend:
                raise InputError(
                    f"{folder}: activations of backend {said.get('name')}, not {backend}; choose another folder"
                )
            return _complete(folder, about, element, tokens, reader)
        reader.backend = open_backend(backend, reader.lm, (reader.site, *reader.others))
        if reader.backend is not None:
            parity = check_parity(reader, tokens, backend)
            # Rounding may differ between workers, so what the plan says is kept.
            about |= {"backend": parity if plan is None else plan.about.get("backend", {})}
        done = harvest_folder(
            reader, tokens, folder, about, stop, worker=worker, element=element, given=given, prepare=prepare
        )
        if done is None and not is_store(folder):
            return None
        _describe_model(folder, reader)
        if isinstance(folder, LocalFolder):
            remove_unheld(folder.at)  # the claims of workers that were killed
        store = open_store(folder)
        return HarvestResult(store, done or Harvest.of_record(store.harvest, store.n_rows, tokens.n_tokens))


def _complete(
    folder: Folder, about: dict[str, Any], element: Element, tokens: Tokens, reader: ActivationReader
) -> HarvestResult:
    """A store that was complete before. Raises InputError if it is of other activations."""
    store = open_store(folder)
    check_store(store, about, "choose another folder")
    if (there := store.manifest.get("element", "auto")) != element:
        raise InputError(f"{folder}: activations stored as {there}, not {element}; choose another folder")
    remove_unfinished(folder, folder.sizes())  # left if the harvest was killed just before they were removed
    _describe_model(folder, reader)
    note(f"{folder}: this harvest is complete; nothing is left to do")
    return HarvestResult(store, Harvest.of_record(store.harvest, store.n_rows, tokens.n_tokens))


def _describe_model(folder: Folder, reader: ActivationReader) -> None:
    if not folder.has(MODEL):
        folder.write_json(MODEL, about_model(reader))


def _as_planned(
    plan: Plan, given: dict[str, Any], config: TrainConfig, reader: ActivationReader, folder: Folder
) -> tuple[TrainConfig, Tokens]:
    """The settings that another worker, or an earlier process, determined from the same given ones, and the text.

    Raises InputError if the given ones are not the same.
    """
    there = {name: plan.settings.get(f"given {name}") for name in given}
    check_agreed(folder, there, given)
    about = plan.about
    max_norm = about.get("max_norm", config.activations.max_norm)
    config = replace(config, data=about.get("data", config.data))
    tokens = _planned_tokens(plan, folder)
    if tokens is None:
        tokens = read_tokens(config, reader, "train", config.tokens)
    reader.max_norm = max_norm or 0.0
    config = replace(settle_text(config, reader), activations=replace(config.activations, max_norm=max_norm))
    return settle_positions(config, reader, tokens), tokens


def _planned_tokens(plan: Plan, folder: Folder) -> Tokens | None:
    """The tokens that another worker has written; None if they are missing or damaged."""
    if not folder.has(TOKENS):
        return None
    try:
        tokens = Tokens.of_tensors(folder.read_tensors(TOKENS), folder.path(TOKENS))
    except InputError:
        tokens = None
    if tokens is None or digest_of_text(tokens) != plan.text:
        folder.remove(TOKENS)
        return None
    return tokens


@contextmanager
def _claimed(folder: Folder, worker: Worker) -> Iterator[None]:
    """Keep other processes from being the same worker; on a disk only."""
    if not isinstance(folder, LocalFolder):
        yield
    elif worker.of == 1:
        with claimed_run(folder.at):
            yield
    else:
        with claimed(folder.at, f"worker-{worker.index}-of-{worker.of}"):
            remove_leftovers(folder.at)
            yield


def _check_free(folder: Folder) -> None:
    """Raise InputError if a folder holds anything else than a harvest."""
    if is_store(folder) or folder.has(PLAN):
        return
    free = is_free(folder.at) if isinstance(folder, LocalFolder) else not folder.sizes()
    if not free and not folder.has(PLAN) and not is_store(folder):  # another worker may just have begun
        raise InputError(f"{folder}: exists and is not empty; choose another folder")
