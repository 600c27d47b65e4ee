"""The main job in one process: train, measure, index, show, with one reading of the text for all but the measures."""

from __future__ import annotations

import time
from pathlib import Path

from .config import TrainConfig
from .explore import build_index, output_console, show_families
from .measures import SETS, table
from .measures.run import measure_run
from .progress import console
from .training import run_training

_CE_TOKENS = 16_384


def run_demo(config: TrainConfig, out: Path, eval_tokens: int) -> None:
    """Runs the demo into `out` and prints the measures, the families, and where the time went."""
    start = time.monotonic()
    console.print(f"[bold]Training[/] a Tree SAE on {config.model} at {config.site} into {out}")
    run = run_training(config, out)
    trained = time.monotonic()

    console.print("[bold]Measuring[/] it on held-out text")
    records = measure_run(
        run.sae, config, run.reader, SETS["fast"], tokens=eval_tokens, ce_tokens=_CE_TOKENS, folder=out
    )
    measured = time.monotonic()

    console.print("[bold]Indexing[/] what its features fire on")
    blocks = (run.blocks.block(0, i) for i in range(run.blocks.n_blocks))
    index = build_index(run.sae, blocks, run.tokens, total=run.tokens.n_tokens)
    index.save(out / "index")
    indexed = time.monotonic()

    output = output_console()
    output.print(table(records))
    show_families(output, index, run.sae.forest, run.reader.lm.tokenizer)
    lm = run.reader.seconds
    output.print(
        f"Time: {trained - start:.0f} s training with its harvest, {measured - trained:.0f} s measuring, "
        f"{indexed - measured:.0f} s indexing; {lm:.0f} s of these in the language model."
    )
