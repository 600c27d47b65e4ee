"""The demo: train, measure, index and show in one process, reading the text only once except for the measures."""

from __future__ import annotations

import time
from pathlib import Path

from .config import TrainConfig
from .errors import InputError
from .evaluation import SETS, MeasureOptions, measure_run, table
from .explore import Explorer, build_index, show_families
from .explore.views.nulls import nulls_line
from .files import read_json, write_json
from .output import note, results
from .run_folder import RunFolder
from .session import open_reader
from .training.run import reopened, train_in
from .training.unfinished import claimed_run, is_complete, run_state, tidy


def run_demo(config: TrainConfig, out: Path, eval_tokens: int) -> None:
    """Run the demo in the folder `out`, or continue one that was stopped there.

    Prints the measures, the families, and the time that each part took. Raises InputError if `out` holds anything other
    than a demo with these settings, or if another process works in it.
    """
    start = time.monotonic()
    folder = RunFolder(out)
    tidy(folder)
    with claimed_run(out):
        if is_complete(folder, config) and not folder.demo_file.exists():
            note(f"{out}: this demo is complete; see it with `saeforest show {out}`")
            return
        begin(folder, {"tokens": config.tokens, "eval_tokens": eval_tokens})
        note(f"Training a Tree SAE on {config.model} at {config.site} into {out}")
        try:
            run = reopened(folder) if run_state(folder) == "complete" else train_in(folder, config)
        except BaseException:
            if run_state(folder) == "empty":
                folder.demo_file.unlink()
            raise
        reader = run.reader or open_reader(run.config)
        trained = time.monotonic()

        note("Measuring it on held-out text")
        options = MeasureOptions(tokens=eval_tokens)
        ((name, records),) = measure_run(folder, SETS["fast"], options, reader=reader).items()
        measured = time.monotonic()

        note("Indexing what its features fire on")
        blocks = (run.blocks.block(0, i) for i in range(run.blocks.n_blocks))
        index = build_index(
            run.sae, run.sae.forest, blocks, run.tokens, total=run.tokens.n_tokens, lm=reader.lm
        )
        with folder.claimed(folder.index(name)):
            index.save(folder.index(name))
        indexed = time.monotonic()

        output = results()
        output.print(table(records))
        explorer = Explorer(index, run.sae.forest, reader.lm.tokenizer)
        show_families(output, explorer, nulls=nulls_line(folder, name))
        harvest = run.seconds_harvest
        output.print(
            f"Time: harvest {harvest:.0f} s, loading and training {trained - start - harvest:.0f} s, "
            f"measures {measured - trained:.0f} s, index {indexed - measured:.0f} s."
        )
        folder.demo_file.unlink()
    tidy(folder)


def begin(run: RunFolder, about: dict[str, int]) -> None:
    """Mark the folder as that of a demo. Raises InputError if it holds anything other than one with these settings."""
    if run.demo_file.exists():
        if (there := read_json(run.demo_file)) != about:
            raise InputError(
                f"{run}: contains an unfinished demo with {there}, not {about}; choose another folder"
            )
    elif run_state(run) != "empty":
        raise InputError(f"{run}: exists, is not empty, and is not a demo; choose another folder")
    write_json(run.demo_file, about)
