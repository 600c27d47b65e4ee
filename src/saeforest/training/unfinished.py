"""Folders of unfinished runs: whether a run can be resumed, and which of its files are worth keeping."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ..activations.data import GivenData, StoredData, data_of
from ..activations.folder import LocalFolder
from ..activations.plan import PLAN, is_unfinished
from ..activations.sources import is_store
from ..claim import claimed, is_lock, remove_unheld
from ..config import TrainConfig, of_dict, to_dict
from ..errors import InputError
from ..files import is_temporary, remove_leftovers
from ..output import note
from ..run_folder import RunFolder
from ..stopping import Interrupted
from .checkpoint import latest_checkpoint, read_state
from .log import log_files
from .settle import settle

State = Literal["empty", "started", "complete", "foreign"]
# Values of settings that a run replaces by actual ones.
_OPEN = {"auto", "dataset_scale"}


def run_state(run: RunFolder) -> State:
    """The state of a run's folder.

    empty: nothing that would be in a new run's way; started: an unfinished run; complete: all SAEs are there;
    foreign: files, but no run's configuration.

    Raises InputError if the path cannot be a folder.
    """
    if is_free(run.path):
        return "empty"
    if not run.config_file.is_file():
        return "foreign"
    return "complete" if run.is_trained() else "started"


def is_free(out: Path) -> bool:
    """Whether `out` holds nothing in the way of new results. Raises InputError if it cannot be a folder."""
    _check_folder(out)
    demo = RunFolder(out).demo_file
    return not out.exists() or all(p == demo or is_lock(p) or is_temporary(p) for p in out.iterdir())


def _check_folder(out: Path) -> None:
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            raise InputError(f"{folder}: a broken link; choose another folder")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, but {out} must be a folder; choose another one")


def is_complete(run: RunFolder, config: TrainConfig | None = None) -> bool:
    """Whether a run is complete and, if `config` is given, has that configuration."""
    if run_state(run) != "complete":
        return False
    return config is None or not _of_another(settle(config), run.config())


def claim_empty(out: Path, *, hint: str = "choose another folder") -> None:
    """Raise InputError unless `out` is empty, for results that cannot be continued."""
    if not is_free(out):
        raise InputError(f"{out}: exists and is not empty; {hint}")


@contextmanager
def claimed_run(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder inside the `with` block, after removing what killed ones left in it.

    Folders that were created for this are removed again if they stay empty. Raises InputError if another process works
    in the folder.
    """
    _check_folder(out)
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with claimed(out):
            remove_leftovers(out)
            yield
    finally:
        for folder in created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def tidy(run: RunFolder) -> None:
    """Remove what killed processes left in a run, and what a complete run no longer needs, unless it is in use."""
    if not run.path.is_dir():
        return
    with suppress(InputError, OSError), run.claimed():  # in use, or not ours to write in
        remove_leftovers(run.path)
        remove_unheld(run.path)
        if run_state(run) == "complete":
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            if not run.demo_file.exists():  # a demo still wants them
                shutil.rmtree(run.activations, ignore_errors=True)


def going_on(run: RunFolder, config: TrainConfig) -> TrainConfig:
    """The configuration to train with in a folder: `config`, or that of the unfinished run there, which must agree.

    Raises InputError if the folder holds anything else.
    """
    state = run_state(run)
    if state == "empty":
        return config
    if state == "foreign":
        raise InputError(f"{run}: exists and is not empty; choose another folder")
    there = run.config()
    what = "a finished run" if state == "complete" else "an unfinished run"
    if differing := _of_another(config, there):
        key, (wanted, found) = next(iter(differing.items()))
        others = f" and {len(differing) - 1} more settings" if len(differing) > 1 else ""
        raise InputError(
            f"{run}: exists and is not empty: it holds {what} with {key} = {found!r}, not {wanted!r}{others}; "
            "choose another folder"
            + ("" if state == "complete" else ", or resume that run with its own settings")
        )
    if state == "complete":
        raise InputError(f"{run}: this run is complete; nothing to resume")
    note(f"{run}: resuming the unfinished run there")
    return there


def _of_another(wanted: TrainConfig, found: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """By key, what makes a run in a folder another than the wanted one."""
    differing = differences(to_dict(wanted), to_dict(found))
    if wanted.tokens != found.tokens and _fixes_tokens(wanted):
        differing["tokens"] = (wanted.tokens, found.tokens)
    return differing


def _fixes_tokens(wanted: TrainConfig) -> bool:
    """Whether `tokens` of a settled configuration is what is read, and no text may cut it short."""
    data = data_of(wanted.data)
    if isinstance(data, StoredData):
        return wanted.tokens < data.manifest.tokens
    return isinstance(data, GivenData)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ between two configurations, by key.

    Values that `wanted` leaves to the run (`auto`, None) do not count as different.
    """
    differing: dict[str, tuple[Any, Any]] = {}
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        a, b = wanted.get(key), found.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing |= {f"{key}.{inner}": pair for inner, pair in differences(a, b).items()}
        elif a != b and not _decided(key, a, b):
            differing[key] = (a, b)
    return differing


def _decided(key: str, wanted: Any, found: Any) -> bool:
    """Whether `found` is a value by which a run may have replaced `wanted`."""
    if key == "tokens":  # the text may have fewer
        return found < wanted
    if key == "data" and isinstance(found, str):  # a Hub data set's revision
        name, _, subset = str(wanted).partition(":")
        return "@" not in name and found.startswith(f"{name}@") and found.endswith(subset)
    return wanted is None or (isinstance(wanted, str) and wanted in _OPEN)


def check_about(checkpoint: Path, about: Mapping[str, Any], config: Path) -> None:
    """Raise InputError if the settings or the model of a run are not those that the checkpoint was written with."""
    written = dict(read_state(checkpoint).about)
    if not written:  # written by an older version
        return
    with suppress(ValueError):  # a setting that is newer than the checkpoint had its default's effect
        written["config"] = to_dict(of_dict(written["config"]))
    for key, (now, then) in differences(about, written).items():
        raise InputError(
            f"{checkpoint}: written with {key.removeprefix('config.')} = {then!r}, but now it is {now!r} (see "
            f"{config}); restore that setting, or start again in another folder"
        )


class TooFew(InputError):
    """A run has read too few activations to train on."""


@contextmanager
def undone_if_worthless(run: RunFolder) -> Iterator[None]:
    """If the `with` block fails, delete a run that began in it, unless it has read activations or trained.

    The messages of Interrupted and InputError then say what was kept.
    """
    fresh = not run.config_file.exists()
    try:
        yield
    except BaseException as error:
        kept = _kept(run)
        if fresh and (not kept or isinstance(error, TooFew)):
            _remove_beginnings(run)
            kept = ""
        if isinstance(error, Interrupted) and not latest_checkpoint(run.checkpoints):
            said = str(error) or "stopped"
            raise Interrupted(f"{said}; {kept or 'nothing was kept'}", error.signum) from None
        if isinstance(error, InputError) and fresh and kept and is_store(run.activations):
            place = run.activations
            raise InputError(
                f"{error} (the activations of this run are in {place}: with data = {place} another run can use them)"
            ) from None
        raise


def _kept(run: RunFolder) -> str:
    """A description of those files of a run that took time to compute; empty if there are none."""
    if latest_checkpoint(run.checkpoints) is not None or run.has_sae():
        return f"{run} contains what was trained so far"
    folder = run.activations
    if is_store(folder):
        return f"all activations are kept in {folder}"
    if any(is_unfinished(name) and name != PLAN for name in LocalFolder(folder).sizes()):
        return f"the activations read so far are kept in {folder}"
    return ""


def _remove_beginnings(run: RunFolder) -> None:
    """Delete the files that a run writes before it trains, and nothing else."""
    for folder in (run.activations, run.sinks):
        shutil.rmtree(folder, ignore_errors=True)
    folders = [run.logs(name) for name in run.names()] if run.config_file.exists() else []
    for file in (
        run.config_file,
        run.model_file,
        *(file for folder in folders for file in log_files(folder)),
    ):
        file.unlink(missing_ok=True)
    for folder in (*folders, *(folder.parent for folder in folders), run.checkpoints):
        if run.path in folder.parents:
            with suppress(OSError):
                folder.rmdir()
