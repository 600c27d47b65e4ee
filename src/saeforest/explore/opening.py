"""Opening what the explorer shows of a run: its SAE's forest, its index, and the tokenizer of its text."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..kept_forest import forest_of
from ..lm import load_tokenizer
from ..output import note
from ..run_folder import RunFolder
from .index import Index
from .measuring.run import index_run
from .queries.explorer import Explorer

_MOST_DIGITS = 20


def open_explorer(
    run: RunFolder | Path | str,
    sae: str | None = None,
    device: str | None = None,
    *,
    feature: int | str | None = None,
) -> Explorer:
    """The explorer of an SAE of a run. Makes the index first if there is none.

    sae:    name of the SAE; may be left out if the run has only one.
    device: device for making an index; None for the one the SAE was trained on.
    feature: a feature that is going to be asked for, so that an unknown one is found out before an index is made.

    Raises InputError if the folder is not a run with a trained SAE, its index is damaged or belongs to another SAE, or
    there is no such feature.

    Example:
        >>> explorer = open_explorer("runs/demo")  # doctest: +SKIP
        >>> explorer.feature(17)  # in a notebook, displays itself  # doctest: +SKIP
    """
    run = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    config, trained = run.load(sae, device)
    name = sae or run.names()[0]
    if feature is not None:
        _check(str(feature), trained.d_sae, run)
    forest, origin = forest_of(trained, run.forest(name))
    folder = run.index(name)
    if folder.exists():
        found = Index.load(folder, trained, forest)
    else:
        note(f"{run} has no index yet; making it, once")
        found = index_run(run, sae=name, device=device)
    return Explorer(found, forest, load_tokenizer(config.model), origin=origin)


def _check(feature: str, d_sae: int, run: RunFolder) -> None:
    if not (feature.isdecimal() and len(feature) <= _MOST_DIGITS and int(feature) < d_sae):
        raise InputError(
            f"feature {feature[:_MOST_DIGITS]}: expected 0 to {d_sae - 1}, the features of {run}"
        )
