"""The main job in one process: train, measure, index, show, with one reading of the text for all but the measures."""

from __future__ import annotations

import time
from pathlib import Path

from .config import TrainConfig
from .errors import UserError
from .explore import build_index, show_families
from .measures import SETS, MeasureOptions, measure_run, table
from .output import note, results
from .saes.files import SAE_FOLDER
from .training import run_training
from .training.checkpoint import latest_checkpoint
from .training.loop import CHECKPOINTS
from .training.run import resume_config


def run_demo(config: TrainConfig, out: Path, eval_tokens: int) -> None:
    """Runs the demo into `out`, or goes on with one that was stopped there.

    Prints the measures, the families, and where the time went.
    """
    start = time.monotonic()
    if (out / SAE_FOLDER).exists():
        raise UserError(f"{out}: holds a finished run; see it with `show {out}`, or choose another --out")
    resume = latest_checkpoint(out / CHECKPOINTS) is not None
    if resume:
        config = resume_config(out)
    note(f"Training a Tree SAE on {config.model} at {config.site} into {out}")
    run = run_training(config, out, resume=resume)
    trained = time.monotonic()

    note("Measuring it on held-out text")
    options = MeasureOptions(tokens=eval_tokens)
    records = measure_run({"": (run.config, run.sae)}, run.reader, SETS["fast"], options, out)[""]
    measured = time.monotonic()

    note("Indexing what its features fire on")
    blocks = (run.blocks.block(0, i) for i in range(run.blocks.n_blocks))
    index = build_index(run.sae, blocks, run.tokens, total=run.tokens.n_tokens)
    index.save(out / "index")
    run.drop_activations()
    indexed = time.monotonic()

    output = results()
    output.print(table(records))
    show_families(output, index, run.sae.forest, run.reader.lm.tokenizer)
    harvest = run.seconds_harvest
    output.print(
        f"Time: harvest {harvest:.0f} s, loading and training {trained - start - harvest:.0f} s, "
        f"measures {measured - trained:.0f} s, index {indexed - measured:.0f} s."
    )
