"""`saeforest eval`."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..output import results, say_json
from ..ranks import here
from ..stopping import Interrupted
from .arguments import parse, taken
from .common import named


def evaluate(argv: Sequence[str]) -> None:
    from ..evaluation import measure_names, measure_run, table
    from ..evaluation.options import MEASURE_PRESETS
    from ..run_folder import RunFolder
    from .eval_arguments import eval_arguments

    ranks = here()
    preset, rest = taken(argv, "--preset")
    if preset is not None and preset not in MEASURE_PRESETS:
        raise InputError(f"--preset {preset[:100]}: expected one of {', '.join(MEASURE_PRESETS)}")
    args = parse(eval_arguments(MEASURE_PRESETS[preset or "recommended"]), rest, "eval")
    run = RunFolder(args.run)
    names = measure_names(args.measures)
    sae = None if args.sae is None else named(run, args.sae)
    try:
        found = measure_run(
            run, names, args.options, sae=sae, device=args.device, again=args.again, ranks=ranks
        )
    except Interrupted as stop:
        kept = f"finished measures are kept in {run.records}; give the same command for the others"
        raise Interrupted(f"stopped; {kept}", stop.signum) from None
    if not ranks.first:
        return
    if args.json:
        records = {
            name: {record.measure: record.to_json() for record in of_one} for name, of_one in found.items()
        }
        say_json({"run": str(run), "saes": records})
        return
    for name, records in found.items():
        results().print(table(records, title=name if run.several else None))
