"""`saeforest.measure`: the records of an SAE, on activations or on the text of its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..interop import load
from ..run_folder import RunFolder
from ..saes import SAE
from ..schema import shown
from ..structure.forest import Forest
from .arguments import Activations, a, activations, named_as_arguments
from .train import TrainedRun

if TYPE_CHECKING:
    from ..evaluation import MeasureOptions
    from ..measures.record import Record


def measure(
    source: SAE | TrainedRun | RunFolder | str | Path,
    x: Activations | None = None,
    measures: str | Sequence[str] | None = None,
    *,
    forest: Forest | None = None,
    options: MeasureOptions | None = None,
    sae: str | None = None,
) -> dict[str, Record]:
    """Measures an SAE: on activations, or, where it is of a run, on text that the training left out.

    source: an SAE, or a run: what `saeforest.train` returned, a RunFolder, or the path of one.
    x: activations `[n, d]` to measure on, best others than those of the training. None: the run's held-out text, read
        by its language model; records are then kept in the run, and taken from there the next time.
    measures: names in a list, or in one string separated by commas; also fast, paper, saebench or truth, which are sets
        of them; on activations, those of a set that need no text. docs/measures.md describes each. Default: fast.
    forest: stands in for the SAE's own, as measures of the hierarchy of a flat SAE need it (`infer_forest`). Only
        beside `x`: a run infers one itself.
    options: settings of measures (`saeforest.evaluation.MeasureOptions`).
    sae: which SAE of a run that has several. Default: all, and each record's key is then SAE/MEASURE.

    Returns the records by the name of the measure: `records["reconstruction"].value["fve"]` is a number, and
    `.interval["fve"]` its 95% interval. On activations, intervals resample windows of 128 consecutive rows.

    Raises InputError for a measure that there is not, one that needs text where there are only activations, and one
    that needs a forest where there is none; for activations of a wrong shape or with NaN or infinite values; and for a
    run without a language model or without a trained SAE.

    Example:
        >>> import torch, saeforest
        >>> x = torch.randn(2_000, 16)
        >>> run = saeforest.train(x, "topk", layer_sizes=32, k_per_layer=4, steps=20)
        >>> records = saeforest.measure(run, x, "reconstruction,sparsity")
        >>> list(records)
        ['reconstruction', 'sparsity']
    """
    from ..evaluation import MEASURES, MeasureOptions, measure_names, measure_run
    from ..evaluation.rows import evaluate_rows, missing_for_rows

    with named_as_arguments():
        if options is not None and not isinstance(options, MeasureOptions):
            raise InputError(f"options: expected a saeforest.evaluation.MeasureOptions, not {a(options)}")
        if measures is None:
            measures = "fast"
        if isinstance(measures, list | tuple) and all(isinstance(name, str) for name in measures):
            measures = ",".join(measures)
        if not isinstance(measures, str):
            raise InputError(f"measures: expected names of measures, not {a(measures)}")
        names, named = measure_names(measures), {name.strip() for name in measures.split(",")}
        if isinstance(source, str | Path):
            source = (
                RunFolder(Path(source)) if RunFolder(Path(source)).config_file.is_file() else load(source)
            )
        if not isinstance(source, SAE | TrainedRun | RunFolder):
            raise InputError(f"source: expected an SAE, a run or the path of one, not {a(source)}")
        if x is not None:
            one = _one_sae(source, sae)
            # Those of a set that rows cannot supply are left out; one asked for by its own name is an error.
            has_forest = one.has_forest or forest is not None
            names = [
                name
                for name in names
                if name in named
                or (
                    not missing_for_rows(MEASURES[name])
                    and (has_forest or "forest" not in MEASURES[name].needs)
                )
            ]
            _check_forest(forest, one)
            return evaluate_rows(one, activations("x", x, one.d_in), names, options, forest=forest)
        folder = source.folder if isinstance(source, TrainedRun) else source
        if not isinstance(folder, RunFolder):
            what = "an SAE alone" if isinstance(source, SAE) else "a run in memory"
            raise InputError(f"x: {what} has no text to be measured on; give activations [n, d]")
        if forest is not None:
            raise InputError("forest: a run's measures infer one where it is needed; give it only beside x")
        found = measure_run(folder, names, options, sae=sae)
        if len(found) == 1:
            return {record.measure: record for records in found.values() for record in records}
        return {f"{name}/{record.measure}": record for name, records in found.items() for record in records}


def _one_sae(source: SAE | TrainedRun | RunFolder, name: str | None) -> SAE:
    if isinstance(source, SAE):
        if name is not None:
            raise InputError(f"sae = {shown(name)}: source is an SAE already; leave it out")
        return source
    if isinstance(source, RunFolder):
        return source.load(name)[1]
    if name is None and len(source.saes) > 1:
        raise InputError(f"sae: the run has several; name one of them: {', '.join(source.saes)}")
    if name is not None and name not in source.saes:
        raise InputError(f"sae = {shown(name)}: expected one of {', '.join(source.saes)}")
    return source.sae if name is None else source.saes[name]


def _check_forest(forest: object, sae: SAE) -> None:
    if forest is None:
        return
    if not isinstance(forest, Forest):
        raise InputError(f"forest: expected a saeforest.Forest, not {a(forest)}")
    if forest.d_sae != sae.d_sae:
        raise InputError(f"forest: is of {forest.d_sae:,} features, but the SAE has {sae.d_sae:,}")
