"""`saeforest eval`."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..output import results
from ..stopping import Interrupted
from .arguments import parse, taken
from .common import doc, named


def evaluate(argv: Sequence[str]) -> None:
    """Measure trained SAEs on text they have not seen. Writes RUN/eval/MEASURE.json; goes on where it was stopped."""
    from ..evaluation import measure_names, measure_run, table
    from ..evaluation.options import MEASURE_PRESETS
    from ..run_folder import RunFolder
    from .eval_arguments import eval_arguments

    preset, rest = taken(argv, "--preset")
    if preset is not None and preset not in MEASURE_PRESETS:
        raise InputError(f"--preset {preset[:100]}: expected one of {', '.join(MEASURE_PRESETS)}")
    args = parse(eval_arguments(MEASURE_PRESETS[preset or "recommended"]), rest, "eval", doc(evaluate))
    run = RunFolder(args.run)
    names = measure_names(args.measures)
    sae = None if args.sae is None else named(run, args.sae)
    try:
        found = measure_run(run, names, args.options, sae=sae, device=args.device, again=args.again)
    except Interrupted as stop:
        kept = f"the measures taken so far are kept in {run.records}; give the same command for the others"
        raise Interrupted(f"stopped; {kept}", stop.signum) from None
    for name, records in found.items():
        results().print(table(records, title=name if run.several else None))
