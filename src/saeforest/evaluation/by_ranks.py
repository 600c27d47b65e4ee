"""The pass over the text by several ranks: each runs the language model and the SAEs on windows of its own.

Batch i of windows is that of rank i modulo their number. The first rank receives what the others computed, in the order
of the text, and shows it to the measures. So the batches, their order and every sum are those of a single process, and
the records are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..measures.measure import EvalBatch, Spliced, WindowLosses
from ..ranks import Ranks
from ..saes import SAE
from ..sparse_code import SparseCode
from .task import Task
from .windows import WindowView

_LOSS, _LEVEL = "losses.", "level."
_ALWAYS = ("x", "rows", "window", "windows", "x_hat")


def _levels(levels: dict[int, Spliced]) -> Any:
    return lambda level: levels[level]


def as_tensors(batch: EvalBatch, n_levels: int) -> dict[str, Tensor]:
    """A batch as tensors by name. n_levels: the number of layers with whose reconstruction losses are wanted."""
    found = {name: getattr(batch, name) for name in _ALWAYS}
    found |= {"values": batch.code.values, "ids": batch.code.ids}
    if batch.origin is not None:
        found["origin"] = batch.origin
    if batch.losses is not None:
        found |= {f"{_LOSS}{name}": column for name, column in vars(batch.losses).items()}
        spliced_level = batch.spliced_level
        for level in range(n_levels):
            assert spliced_level is not None
            losses = spliced_level(level)._asdict()
            found |= {f"{_LEVEL}{level}.{name}": column for name, column in losses.items()}
    return found


def as_batch(tensors: dict[str, Tensor], device: torch.device) -> EvalBatch:
    """The batch of `as_tensors`, for an SAE on a device."""
    losses = {name.removeprefix(_LOSS): x for name, x in tensors.items() if name.startswith(_LOSS)}
    levels: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith(_LEVEL):
            _, level, column = name.split(".")
            levels.setdefault(int(level), {})[column] = x
    code = SparseCode(tensors["values"].to(device), tensors["ids"].to(device))
    return EvalBatch(
        x=tensors["x"].to(device),
        rows=tensors["rows"],
        window=tensors["window"].to(device),
        windows=tensors["windows"].to(device),
        origin=tensors.get("origin"),
        code=code,
        x_hat=tensors["x_hat"].to(device),
        losses=WindowLosses(**losses) if losses else None,
        spliced_level=_levels({i: Spliced(**level) for i, level in levels.items()}) if losses else None,
    )


class Codes:
    """The batches of some windows, by SAE: tasks of one SAE that follow each other share them."""

    def __init__(self, through: Callable[[Task, bool], EvalBatch]) -> None:
        """through: makes the batch for a task, with losses or without."""
        self._through = through
        self._sae: SAE | None = None
        self._batch: EvalBatch | None = None

    def __call__(self, task: Task) -> EvalBatch:
        losses = task.needs("losses")
        known = self._batch
        if known is None or self._sae is not task.sae or (losses and known.losses is None):
            known = self._through(task, losses)
            self._sae, self._batch = task.sae, known
        return known


class Viewed:
    """Windows that this rank has read, and their batches by SAE."""

    def __init__(self, view: WindowView) -> None:
        self._view = view
        self.rows, self.kept = view.rows, view.kept

    def batch(self, task: Task, losses: bool) -> EvalBatch:
        """The batch for a task, with losses or without."""
        return self._view.through(task.sae, losses=losses)


class Received:
    """The batches of some windows by SAE, as another rank sends them: in the order in which tasks ask for them."""

    def __init__(self, ranks: Ranks, source: int) -> None:
        self._ranks, self._source = ranks, source
        first = ranks.receive(source)
        self.rows: Tensor = first["rows"]
        self.kept: Tensor = first.get("kept", torch.empty(0))

    def batch(self, task: Task, losses: bool) -> EvalBatch:
        """The batch for a task. It has losses if the other rank found that it needs them."""
        return as_batch(self._ranks.receive(self._source), task.sae.device)


def send_batches(ranks: Ranks, view: Viewed, tasks: Sequence[Task], n_levels: int, *, kept: bool) -> None:
    """Send the batches of some windows to the first rank, which receives them by `Received`.

    n_levels: see `as_tensors`. kept: whether the activations themselves are needed.
    """
    ranks.send({"rows": view.rows, **({"kept": view.kept} if kept else {})}, 0)
    codes = Codes(view.batch)
    sent: EvalBatch | None = None
    for task in tasks:
        if (batch := codes(task)) is not sent:
            ranks.send(as_tensors(batch, n_levels), 0)
            sent = batch
