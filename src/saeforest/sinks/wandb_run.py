"""Weights & Biases: online, or in files for `wandb sync` (WANDB_MODE=offline)."""

from __future__ import annotations

import os

import wandb  # pyright: ignore[reportMissingImports]

from .sink import PROJECT, Start


class Wandb:
    """A run of Weights & Biases, found again by its id. Its files are in RUN/sinks/wandb."""

    def __init__(self, start: Start) -> None:
        self.id = start.id or start.fresh
        start.folder.mkdir(parents=True, exist_ok=True)  # where it makes a folder wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.id,
            name=start.name,
            group=start.group,
            config=start.config,
            dir=str(start.folder),
            resume="allow",
            reinit="create_new",  # one for each SAE
            save_code=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand the numbers of a step to the tool's own process."""
        self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        """Send what waits; an unfinished run counts as failed until it goes on."""
        self._run.finish(exit_code=0 if finished else 1)


def open_sink(start: Start) -> Wandb:
    """Open a run for an SAE, or go on with an earlier one."""
    return Wandb(start)
