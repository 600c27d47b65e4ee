"""Opening what the explorer shows: an SAE's forest, its index, and the tokenizer of its text."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..lm import load_tokenizer
from ..output import note
from ..run_folder import RunFolder
from .index import Index
from .measuring.run import make_index
from .queries.explorer import Explorer
from .subject import Subject

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
    return explorer_of(Subject.of_run(run, sae, device), feature=feature)


def explorer_of(subject: Subject, *, feature: int | str | None = None) -> Explorer:
    """The same for an SAE that is loaded, of a run or alone."""
    whose = subject.run or subject.name
    if feature is not None:
        _check(str(feature), subject.sae.d_sae, str(whose))
    if subject.place.index.exists():
        forest, origin = subject.forest
        found = Index.load(subject.place.index, subject.sae, forest)
    else:
        note(f"{whose} has no index yet; making it, once")
        found = make_index(subject)
        forest, origin = subject.forest
    return Explorer(found, forest, load_tokenizer(subject.config.model), origin=origin)


def _check(feature: str, d_sae: int, whose: str) -> None:
    if not (feature.isdecimal() and len(feature) <= _MOST_DIGITS and int(feature) < d_sae):
        raise InputError(
            f"feature {feature[:_MOST_DIGITS]}: expected 0 to {d_sae - 1}, the features of {whose}"
        )
