"""The pass over the text by several ranks: each runs the language model and the SAEs on windows of its own.

Batch i of windows is that of rank i modulo their number. The first rank receives what the others computed, in the order
of the text, and shows it to the measures. So the batches, their order and every sum are those of a single process, and
the records are the same bit for bit.

What is sent is what costs much to compute: for each batch the activations, once and in the language model's data type,
and for each SAE its codes and losses. Reconstructions follow from these on the first rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..measures.measure import EvalBatch, Spliced, WindowLosses
from ..ranks import Ranks
from ..saes import SAE
from ..sparse_code import SparseCode
from .task import Task
from .windows import WindowView

_LOSS, _LEVEL = "losses.", "level."


def _levels(levels: dict[int, Spliced]) -> Any:
    return lambda level: levels[level]


def shared_tensors(view: WindowView) -> dict[str, Tensor]:
    """What all SAEs share of some windows, as tensors by name."""
    return {
        "rows": view.rows,
        "kept": view.kept,
        "window": view.of_rows,
        "windows": view.parts.first,
        "origin": view.parts.origin,
    }


def as_tensors(batch: EvalBatch, n_levels: int, *, own_target: bool) -> dict[str, Tensor]:
    """What a batch has besides `shared_tensors`, as tensors by name.

    n_levels: the number of layers with whose reconstruction losses are wanted.
    own_target: whether the activations to reconstruct are others than those that the SAE reads.
    """
    found = {"values": batch.code.values, "ids": batch.code.ids.int()}
    if own_target:
        found["x"] = batch.x
    if batch.losses is not None:
        found |= {f"{_LOSS}{name}": column for name, column in vars(batch.losses).items()}
        spliced_level = batch.spliced_level
        for level in range(n_levels):
            assert spliced_level is not None
            losses = spliced_level(level)._asdict()
            found |= {f"{_LEVEL}{level}.{name}": column for name, column in losses.items()}
    return found


def as_batch(shared: dict[str, Tensor], own: dict[str, Tensor], sae: SAE) -> EvalBatch:
    """The batch of `shared_tensors` and `as_tensors`."""
    losses = {name.removeprefix(_LOSS): x for name, x in own.items() if name.startswith(_LOSS)}
    levels: dict[int, dict[str, Tensor]] = {}
    for name, x in own.items():
        if name.startswith(_LEVEL):
            _, level, column = name.split(".")
            levels.setdefault(int(level), {})[column] = x
    device = sae.device
    kept = shared["kept"].to(device).float()
    code = SparseCode(own["values"].to(device), own["ids"].to(device).long())
    return EvalBatch(
        x=own["x"].to(device) if "x" in own else kept,
        rows=shared["rows"],
        window=shared["window"].to(device),
        windows=shared["windows"].to(device),
        origin=shared["origin"],
        code=code,
        x_hat=sae.decode(code, sae.normalize(kept)[1]) if len(kept) else kept.new_zeros(0, sae.d_out),
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
        self.view = view
        self.rows, self.kept = view.rows, view.kept

    def batch(self, task: Task, losses: bool) -> EvalBatch:
        """The batch for a task, with losses or without."""
        return self.view.through(task.sae, losses=losses)


class Received:
    """The batches of some windows by SAE, as another rank sends them: in the order in which tasks ask for them."""

    def __init__(self, ranks: Ranks, source: int) -> None:
        self._ranks, self._source = ranks, source
        self._shared = ranks.receive(source)
        self.rows, self.kept = self._shared["rows"], self._shared["kept"]

    def batch(self, task: Task, losses: bool) -> EvalBatch:
        """The batch for a task. It has losses if the other rank found that it needs them."""
        return as_batch(self._shared, self._ranks.receive(self._source), task.sae)


def send_batches(ranks: Ranks, found: Viewed, tasks: Sequence[Task], n_levels: int) -> None:
    """Send the batches of some windows to the first rank, which receives them by `Received`.

    n_levels: see `as_tensors`.
    """
    view = found.view
    ranks.send(shared_tensors(view), 0)
    codes = Codes(found.batch)
    sent: EvalBatch | None = None
    for task in tasks:
        if (batch := codes(task)) is not sent:
            ranks.send(as_tensors(batch, n_levels, own_target=view.target is not view.kept), 0)
            sent = batch
