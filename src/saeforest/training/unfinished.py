"""What a run's folder holds before the run is complete: whether it can go on, and what of it is worth keeping."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ..activations.sources import is_store
from ..activations.writer import read_journal
from ..config import TrainConfig, load_config, resolve, to_dict
from ..errors import UserError
from ..files import is_temporary, remove_leftovers
from ..output import note
from ..run_folder import LOCK, claimed
from ..saes.files import CFG, SAE_FOLDER
from ..session import CONFIG, within
from ..stopping import Interrupted
from .checkpoint import latest_checkpoint, read_state
from .data import ACTIVATIONS, as_harvested
from .log import ALLOCATIONS, LOG, log_folder
from .loop import CHECKPOINTS

State = Literal["empty", "started", "complete", "foreign"]
#: A demo that is not finished; it still wants the activations.
DEMO = "demo.json"
#: Which language model a run reads, and how it fares on a short text.
MODEL = "model.json"
# What stands for a number or a choice until the run knows which.
_OPEN = {"auto", "dataset_scale"}


def run_state(out: Path) -> State:
    """empty: nothing that a run would mind; complete: every SAE is there; foreign: files, but no run's configuration.

    Raises UserError where `out` cannot be a folder.
    """
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"{folder}: a link to nothing; choose another folder")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, but {out} must be a folder; choose another one")
    if not out.exists() or all(_ours_to_ignore(path) for path in out.iterdir()):
        return "empty"
    if not (out / CONFIG).is_file():
        return "foreign"
    members = load_config(out / CONFIG, of_run=True).members()
    saved = all((within(out / SAE_FOLDER, name) / CFG).is_file() for name in members)
    return "complete" if saved else "started"


def _ours_to_ignore(path: Path) -> bool:
    return path.name in (LOCK, DEMO) or is_temporary(path)


def is_complete(out: Path, config: TrainConfig | None = None) -> bool:
    """Whether the run in `out` is complete and, if `config` is given, one of that configuration."""
    if run_state(out) != "complete":
        return False
    there = load_config(out / CONFIG, of_run=True)
    return config is None or not differences(to_dict(as_harvested(resolve(config))), to_dict(there))


def claim_empty(out: Path, *, hint: str = "choose another folder") -> None:
    """Raises UserError where `out` is in use: for results that are made in one go."""
    if run_state(out) != "empty":
        raise UserError(f"{out}: exists and is not empty; {hint}")


@contextmanager
def claimed_run(out: Path) -> Iterator[None]:
    """Within, no other process can work in the folder; what killed processes left in it is gone.

    What was made for it goes again if nothing came into it. Raises UserError where another process works in it.
    """
    run_state(out)
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with claimed(out):
            remove_leftovers(out)
            yield
    finally:
        for folder in created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def tidy(out: Path) -> None:
    """Removes what killed processes left in a run that nobody works in, and what a complete one needs no more."""
    if not out.is_dir():
        return
    with suppress(UserError, OSError), claimed(out):  # in use, or not ours to write in
        remove_leftovers(out)
        if run_state(out) == "complete":
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
            if not (out / DEMO).exists():
                shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)


def going_on(out: Path, config: TrainConfig) -> TrainConfig:
    """The configuration to train with in `out`: `config`, or that of the unfinished run there, which must agree.

    Raises UserError where the folder holds anything else.
    """
    state = run_state(out)
    if state == "empty":
        return config
    if state == "foreign":
        raise UserError(f"{out}: exists and is not empty; choose another folder")
    there = load_config(out / CONFIG, of_run=True)
    what = "a finished run" if state == "complete" else "an unfinished run"
    if differing := differences(to_dict(config), to_dict(there)):
        key, (wanted, found) = next(iter(differing.items()))
        others = f" and {len(differing) - 1} more settings" if len(differing) > 1 else ""
        raise UserError(
            f"{out}: exists and is not empty: it holds {what} with {key} = {found!r}, not {wanted!r}{others}; "
            "choose another folder"
            + ("" if state == "complete" else ", or resume that run with its own settings")
        )
    if state == "complete":
        raise UserError(f"{out}: this run is complete; nothing to resume")
    note(f"{out}: going on with the unfinished run there")
    return there


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By key, what two configurations differ in. What `wanted` leaves open, `found` may have decided."""
    differing: dict[str, tuple[Any, Any]] = {}
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        a, b = wanted.get(key), found.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing |= {f"{key}.{inner}": pair for inner, pair in differences(a, b).items()}
        elif a != b and not _decided(key, a, b):
            differing[key] = (a, b)
    return differing


def _decided(key: str, wanted: Any, found: Any) -> bool:
    """Whether `found` is what a run may have made of `wanted` by itself."""
    if key == "tokens":  # the text may hold fewer
        return found < wanted
    if key == "data" and isinstance(found, str):  # a Hub data set's revision
        name, _, subset = str(wanted).partition(":")
        return "@" not in name and found.startswith(f"{name}@") and found.endswith(subset)
    return wanted is None or (isinstance(wanted, str) and wanted in _OPEN)


def check_about(checkpoint: Path, about: Mapping[str, Any], config: Path) -> None:
    """Raises UserError where a run is no longer the one that wrote the checkpoint: its settings, or its model."""
    written = read_state(checkpoint).about
    if not written:  # of a version that did not say
        return
    for key, (now, then) in differences(about, written).items():
        raise UserError(
            f"{checkpoint}: was written with {key.removeprefix('config.')} = {then!r}, but now it is {now!r} (see "
            f"{config}); bring that back, or start anew in another folder"
        )


class TooFew(UserError):
    """A run has read fewer activations than it can train on: they are of no use to it."""


@contextmanager
def undone_if_worthless(out: Path) -> Iterator[None]:
    """If what is within fails, a run that began in it leaves nothing, unless it has read activations or trained.

    What stays is said: in the message of an Interrupted, and of a UserError.
    """
    fresh = not (out / CONFIG).exists()
    try:
        yield
    except BaseException as error:
        kept = _kept(out)
        if fresh and (not kept or isinstance(error, TooFew)):
            _remove_beginnings(out)
            kept = ""
        if isinstance(error, Interrupted) and not latest_checkpoint(out / CHECKPOINTS):
            said = str(error) or "stopped"
            raise Interrupted(f"{said}; {kept or 'nothing was kept'}", error.signum) from None
        if isinstance(error, UserError) and fresh and kept and is_store(out / ACTIVATIONS):
            place = out / ACTIVATIONS
            raise UserError(
                f"{error} (the activations of this run are in {place}: with data = {place} another run can use them)"
            ) from None
        raise


def _kept(out: Path) -> str:
    """What there is of a run that took time to make, in words; empty if nothing."""
    if latest_checkpoint(out / CHECKPOINTS) is not None or (out / SAE_FOLDER).exists():
        return f"{out} holds what was trained"
    folder = out / ACTIVATIONS
    if is_store(folder):
        return f"all activations are kept in {folder}"
    journal = read_journal(folder)
    if journal is not None and (journal.shards or journal.pending):
        return f"the activations read so far are kept in {folder}"
    return ""


def _remove_beginnings(out: Path) -> None:
    """Deletes what a run that began in `out` just now has written before it trained, and nothing else."""
    shutil.rmtree(out / ACTIVATIONS, ignore_errors=True)
    names = load_config(out / CONFIG, of_run=True).members() if (out / CONFIG).exists() else {}
    folders = [log_folder(out, name) for name in names]
    for file in (
        out / CONFIG,
        out / MODEL,
        *(folder / name for folder in folders for name in (LOG, ALLOCATIONS)),
    ):
        file.unlink(missing_ok=True)
    for folder in (*folders, out / "logs", out / CHECKPOINTS):
        if folder != out:
            with suppress(OSError):
                folder.rmdir()
