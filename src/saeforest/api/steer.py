"""`saeforest.steer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

from .. import interventions
from ..errors import InputError
from ..interventions import At, Edit, Steered, Where
from ..interventions.steer import Part
from ..lm import LanguageModel
from ..saes import SAE
from ..schema import shown
from .arguments import a, whole


@contextmanager
def steer(
    lm: LanguageModel,
    sae: SAE,
    edits: Edit | Sequence[Edit],
    *,
    at: At | Where = "all",
    error: bool = True,
    closed: bool | None = None,
    site: str | None = None,
) -> Iterator[Steered]:
    """Context in which a language model computes with some features of an SAE changed.

    The code of each activation is edited and decoded again, in `lm.generate`, `lm.logits` and any other forward pass.
    For several sites or SAEs, put contexts into each other. A context gives a `Steered`, which counts the positions
    that were read, and those where the code changed: where none did, the text is as it would have been anyway.

    edits: `set_to`, `scale`, `add`, `clamp` or `ablate` from `saeforest.interventions`, or several of them, which are
        applied in order. Values are in the units of `sae.encode(x).values`.
    at: the positions to steer: "all", "prompt" or "completion", of which only `lm.generate` has the last; a slice of
        positions, or their numbers. The first position and special tokens are left alone in any case, as SAEs are
        seldom trained on them; a `saeforest.interventions.Where` can say otherwise.
    error: keep the part of each activation that the SAE does not reconstruct. Without it, the model computes with the
        reconstruction, which changes its text even if no feature changes.
    closed: an edit that silences a feature also silences the features below it. By default this is so for a gated SAE,
        whose children are active only where their parents are. A feature that an edit makes active is decoded even
        where its parent is silent: to change both, give `sae.forest.path(feature)`.
    site: where the SAE was trained; by default, what its metadata say.

    Raises InputError if the SAE does not fit the model and site, if it has no such feature, or if a feature takes no
    part in the reconstruction (a lower level of an HSAE) and the error term is not kept.

    Example:
        >>> import saeforest
        >>> from saeforest.interventions import ablate, scale
        >>> def steered(lm, sae, prompt):
        ...     family = [scale(sae.forest.subtree(3), 4.0), ablate(sae.forest.siblings(3))]
        ...     with saeforest.steer(lm, sae, family):
        ...         return lm.generate(prompt, 20)
    """
    if not isinstance(lm, LanguageModel):
        raise InputError(f"lm: expected a language model from saeforest.load_lm, not {a(lm)}")
    if not isinstance(sae, SAE):
        raise InputError(f"sae: expected an SAE, not {a(sae)}")
    where = at if isinstance(at, Where) else Where(_positions(at))
    options = {"error": error, "closed": closed, "site": site}
    with interventions.steer(lm, sae, _given(edits), where, **options) as done:
        yield done


def _given(edits: object) -> list[Edit]:
    given = [edits] if isinstance(edits, Edit) else list(edits) if isinstance(edits, Sequence) else []
    wrong = next((edit for edit in given if not isinstance(edit, Edit)), None)
    if wrong is not None or not given:
        what = a(edits) if wrong is None else a(wrong)
        raise InputError(f"edits: expected edits, such as saeforest.interventions.scale(3, 2.0), not {what}")
    return given


def _positions(at: At) -> At:
    if isinstance(at, Sequence) and not isinstance(at, str):
        for place in at:
            whole("at", place, 0)
    elif not isinstance(at, slice) and at not in get_args(Part):
        raise InputError(f"at = {shown(at)}: expected {', '.join(get_args(Part))}, a slice or positions")
    return at
