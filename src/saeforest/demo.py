"""The demo: train, measure, index and show in one process, reading the text only once except for the measures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .errors import InputError, command
from .evaluation import SETS, MeasureOptions, measure_run, table
from .explore import Explorer, build_index, open_explorer, show_families
from .explore.views.nulls import nulls_line
from .files import read_json, write_json
from .measures.record import Record
from .output import note, results
from .run_folder import RunFolder
from .session import open_reader
from .training.run import reopened, train_in
from .training.unfinished import claimed_run, is_complete, run_state, tidy

# Half of what `saeforest eval` takes: cross-entropy is the slowest of the measures.
_CE_TOKENS = 8_192


@dataclass(frozen=True)
class Demo:
    """A finished demo.

    opened: its explorer, if that is open already.
    seconds: how long each part took; None if the demo was complete already.
    """

    run: RunFolder
    name: str
    records: Sequence[Record]
    opened: Explorer | None = None
    seconds: Mapping[str, float] | None = None

    @property
    def explorer(self) -> Explorer:
        return self.opened or open_explorer(self.run, self.name)

    def show(self) -> None:
        """Print the measures, the families, and the time that each part took."""
        if self.seconds is None:
            note(f"{self.run}: this demo is complete; see it with `{command('show', self.run)}`")
            return
        output = results()
        output.print(table(self.records))
        show_families(output, self.explorer, nulls=nulls_line(self.run, self.name))
        took = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items())
        output.print(f"Time: {took}.")

    def to_json(self) -> dict[str, Any]:
        """The same as in a JSON document."""
        explorer = self.explorer
        return {
            "run": str(self.run),
            "sae": self.name,
            "records": {record.measure: record.to_json() for record in self.records},
            "overview": explorer.overview().to_dict(),
            "nulls": nulls_line(self.run, self.name),
            "families": [card.to_dict() for card in explorer.families()],
            "seconds": self.seconds,
        }


def run_demo(config: TrainConfig, out: Path, eval_tokens: int) -> Demo:
    """Run the demo in the folder `out`, or continue one that was stopped there.

    Raises InputError if `out` holds anything other than a demo with these settings, or if another process works in it.
    """
    start = time.monotonic()
    folder = RunFolder(out)
    tidy(folder)
    with claimed_run(out):
        if is_complete(folder, config) and not folder.demo_file.exists():
            return _complete(folder)
        begin(folder, {"tokens": config.tokens, "epochs": config.epochs, "eval_tokens": eval_tokens})
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
        options = MeasureOptions(tokens=eval_tokens, ce_tokens=_CE_TOKENS)
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
        folder.demo_file.unlink()
    tidy(folder)
    seconds = {
        "harvest": run.seconds_harvest,
        "loading and training": trained - start - run.seconds_harvest,
        "measures": measured - trained,
        "index": indexed - measured,
    }
    return Demo(folder, name, records, Explorer(index, run.sae.forest, reader.lm.tokenizer), seconds)


def _complete(run: RunFolder) -> Demo:
    """A demo that was run before."""
    (name,) = run.names()
    paths = (run.record(name, measure) for measure in SETS["fast"])
    records = [Record.read(path) for path in paths if path.is_file()]
    return Demo(run, name, records)


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
