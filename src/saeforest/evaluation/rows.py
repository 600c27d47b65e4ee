"""Measuring an SAE on a tensor of activations, without text, for the measures that need none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..measures.bootstrap import same_units
from ..measures.measure import EvalBatch
from ..measures.needs import Need
from ..measures.record import Record
from ..measures.spec import MeasureSpec, Streaming
from ..progress import progress
from ..saes import SAE
from ..structure.forest import Forest
from .evaluate import evaluate_all, nulled
from .nulls import FOREST_GIVEN, first_rows, start_of
from .options import MeasureOptions
from .registry import MEASURES
from .task import Task, about_sae
from .text_pass import Pass, Read

#: Number of consecutive rows that are resampled together for intervals, like the tokens of a window: they may be alike.
WINDOW_ROWS = 128
_WINDOWS_AT_ONCE = 16
# The needs that rows can supply: no losses, words, labeled texts, examples for a judge, or training log.
_SUPPLIED: frozenset[Need] = frozenset({"firings", "activations", "probes", "forest"})


def missing_for_rows(spec: MeasureSpec) -> list[Need]:
    """The needs of a measure that activations alone cannot supply."""
    # For a streaming measure, "text" means the batches.
    supplied = _SUPPLIED | {"text"} if isinstance(spec, Streaming) else _SUPPLIED
    return sorted(spec.needs - supplied)


def evaluate_rows(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    names: Sequence[str],
    options: MeasureOptions | None = None,
    *,
    forest: Forest | None = None,
) -> dict[str, Record]:
    """Take the named measures of one SAE on activations `x`. Returns the records by name.

    forest: measured instead of the SAE's own. Intervals resample windows of `WINDOW_ROWS` consecutive rows.

    Raises InputError for a transcoder, whose target is not given; for a measure that needs more than activations, or
    a forest if there is none; and if `x` has the wrong width, no rows, or values that are NaN or infinite.
    """
    options = options or MeasureOptions()
    if sae.is_transcoder:
        raise InputError(
            "a transcoder is measured against its target, which is not among these activations; measure a run of it"
        )
    for name in names:
        if missing := missing_for_rows(MEASURES[name]):
            needs = " and ".join(need.replace("_", " ") for need in missing)
            raise InputError(
                f"measure '{name}': needs {needs}, not only activations; leave it out, or measure a run on its "
                "held-out text"
            )
        if "forest" in MEASURES[name].needs and forest is None and not sae.has_forest:
            raise InputError(
                f"measure '{name}': needs a forest, and an SAE of architecture {sae.config.architecture} learns none; "
                "give forest=saeforest.infer_forest(sae, x), preferably with other activations than those measured"
            )
    settings = {
        "data": "activations without a text",
        "rows": len(x),
        "text": same_units("rows", x.float()),
        "window": f"{WINDOW_ROWS} consecutive rows",
        "batch": f"{_WINDOWS_AT_ONCE} windows",
        "forest": "its own" if forest is None else "given",
        "sae_dtype": str(sae.encoder.dtype).removeprefix("torch."),
        **about_sae(sae),
    }
    task = Task(
        sae,
        tuple(names),
        sae.forest if forest is None else forest,
        None,
        settings,
        start=start_of(sae) if forest is None else FOREST_GIVEN,
    )
    if task.with_nulls and options.nulls == "yes":
        task = nulled(task, first_rows(x.detach(), x.detach()))
    found = {record.measure: record for _, record in evaluate_all([task], options, partial(_read_rows, x=x))}
    return {name: found[name] for name in names}


@torch.no_grad()
def _read_rows(passes: Sequence[Pass], ce_tokens: int, *, x: Float[Tensor, "n d_in"]) -> Read:
    with progress("measure", len(x), "activations") as advance:
        for rows in torch.arange(len(x)).split(WINDOW_ROWS * _WINDOWS_AT_ONCE):
            part = x[rows.to(x.device)]
            sae, batch = None, None
            for one in passes:
                if batch is None or one.task.sae is not sae:
                    sae, batch = one.task.sae, _batch(one.task.sae, part, rows)
                one.take(batch)
            advance(len(rows))
    return Read(torch.arange(len(x)), x.detach().cpu())


def _batch(sae: SAE, x: Float[Tensor, "n d_in"], rows: Tensor) -> EvalBatch:
    x = x.to(sae.device).float()
    code, stats = sae.encode_with_stats(x)
    window = (rows // WINDOW_ROWS).to(sae.device)
    return EvalBatch(x, rows, window, window.unique(), code, sae.decode(code, stats))
