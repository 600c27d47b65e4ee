"""Ranks that divide the rows of a dictionary, and perhaps the rows of the batch too.

With S shards, rank r has the rows of the features f with f % S = r % S, their gradients and the optimizer's state for
them. Everything else is the same on all ranks (`kernels/shards.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import shards, sharing
from ..ranks import ALONE, Ranks
from ..saes import Training
from ..saes.base import SAEConfig, blank_weights
from .checkpoint import Parts, restore, tensors_of, write_files
from .log import Log, MemoryLog
from .team import Division, Team, Write, check_same, first_writes

# The systems whose training reads the rows of its weights in kernels alone.
_SYSTEMS = ("topk", "batchtopk", "matryoshka", "tree", "jumprelu", "hsae")
# The weights that have a row for each feature.
_DIVIDED = ("encoder", "decoder")


class ShardedTeam(Team):
    """A table of ranks: its columns divide the dictionary, and its rows the batch."""

    has_all = False

    def __init__(self, ranks: Ranks, division: Division) -> None:
        super().__init__(ranks, division)
        self._data = self._features = ALONE  # until all ranks begin

    def own(self, names: list[str]) -> list[str]:
        return names

    @contextmanager
    def sharing(self) -> Iterator[None]:
        with sharing(self._data), shards.sharded(self._features):
            yield

    def log(self, name: str) -> Log:
        return MemoryLog()

    def building(self) -> AbstractContextManager[None]:
        return blank_weights()

    def take_up(self, trained: Mapping[str, Training]) -> None:
        self._data, self._features = self.ranks.mesh(self.division.shards)
        for training in trained.values():
            if self.ranks.first:
                self._hand_out(training)
            else:
                divide(training, self._features)
                restore(training, {**self.ranks.share(None), **self.ranks.receive(0)})

    def _hand_out(self, training: Training) -> None:
        """Give each rank its rows, and all the rest of the state."""
        tensors, rows = tensors_of(training), rows_of(training)
        self.ranks.share({name: tensor for name, tensor in tensors.items() if name not in rows})
        n_shards = self._features.size
        for rank in range(1, self.ranks.size):
            self.ranks.send({name: whole[rank % n_shards :: n_shards] for name, whole in rows.items()}, rank)
        divide(training, self._features)

    def gather_logs(self, logs: Mapping[str, Log]) -> None:
        pass  # the first rank has logged all there is

    def write(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        check_same(trained, step, self._data)
        if self.division.whole_checkpoints:
            self._write_whole(step, trained, write)
        elif self.ranks.first:
            try:
                self._write_first(step, trained, write)
            finally:
                self.ranks.from_first(lambda: "")
        else:
            if folder := self.ranks.from_first(_first_tells):
                self.ranks.to_first(self._tried(folder, trained))
            # All stay until the checkpoint has its name: a rank that is asked to stop, and ends, ends the first too.
            self.ranks.from_first(_first_tells)

    def gather_weights(self, trained: Mapping[str, Training]) -> None:
        for training in trained.values():
            training.optimizer.state.clear()
            self._join(training)

    # -- a checkpoint in shards: each rank of the first row of the table writes its own

    def _write_first(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        begun = False

        def together(folder: Path) -> dict[str, str]:
            nonlocal begun
            begun = True
            self.ranks.from_first(lambda: str(folder.resolve()))
            own = self._tried(str(folder), trained)
            checksums: dict[str, str] = {}
            for written, failed in [own, *self.ranks.to_first(None)]:
                if failed:
                    raise OSError(*failed)
                checksums |= written
            return checksums

        try:
            write(step, Parts(self.division.shards, together))
        finally:
            if not begun:  # there is no folder to write into, and the others wait to hear of it
                self.ranks.from_first(lambda: "")

    def _tried(
        self, folder: str, trained: Mapping[str, Training]
    ) -> tuple[dict[str, str], tuple[int | None, str | None, str | None] | None]:
        """Write this rank's shard. Returns the checksums of its files, and an error for the first rank to raise."""
        if not self._data.first:
            return {}, None
        shard, size = self._features.rank, self._features.size
        tensors = {name: tensors_of(t) if shard == 0 else rows_of(t) for name, t in trained.items()}
        try:
            return write_files(Path(folder), tensors, shard, size), None
        except OSError as error:
            return {}, (error.errno, error.strerror, error.filename)

    # -- a checkpoint in one file

    def _write_whole(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        for training in trained.values():
            self._join(training)
        try:
            first_writes(self.ranks, step, write)
        finally:
            for training in trained.values():
                if self.ranks.first:
                    divide(training, self._features)

    def _join(self, training: Training) -> None:
        """Bring the rows of all ranks to the first."""
        if self.ranks.first:
            _change(training, lambda own: self._whole(own, training.sae.d_sae))
        elif self.ranks.rank < self._features.size:
            _change(training, self._sent)

    def _whole(self, own: Tensor, d_sae: int) -> Tensor:
        size = self._features.size
        whole = torch.empty(d_sae, *own.shape[1:], dtype=own.dtype)
        whole[::size] = own.cpu()
        for rank in range(1, size):
            whole[rank::size] = self.ranks.receive(rank)["rows"]
        return whole

    def _sent(self, own: Tensor) -> Tensor:
        self.ranks.send({"rows": own}, 0)
        return own


def _first_tells() -> str:
    raise AssertionError("the first rank tells")


def divide(training: Training, features: Ranks) -> None:
    """Keep only the rows of this rank, one of those among which the dictionary is divided."""
    device = training.sae.b_dec.device
    _change(training, lambda whole: whole[features.rank :: features.size].clone().to(device))
    own = [getattr(training.sae, name) for name in _DIVIDED]
    for group in training.optimizer.param_groups:
        group["divided"] = any(weight is part for weight in group["params"] for part in own)


def rows_of(training: Training) -> dict[str, Tensor]:
    """Those of `tensors_of(training)` of which each rank has only its own rows."""
    weights = [weight for group in training.optimizer.param_groups for weight in group["params"]]
    own = {f"training.sae.{name}": getattr(training.sae, name) for name in _DIVIDED}
    for i, weight in enumerate(weights):
        if any(weight is part for part in own.values()):
            state = training.optimizer.state.get(weight, {})
            own |= {f"optimizer.{i}.{key}": x for key, x in state.items() if x.dim()}
    return own


def _change(training: Training, change: Callable[[Tensor], Tensor]) -> None:
    """Put `change(rows)` in the place of the rows of the weights and of the optimizer's moments, in a fixed order."""
    optimizer = training.optimizer
    for name in _DIVIDED:
        old = getattr(training.sae, name)
        new = nn.Parameter(change(old.detach()), requires_grad=old.requires_grad)
        vars(new).update(vars(old))  # whether its gradients are sparse
        new.grad_dtype = old.grad_dtype
        setattr(training.sae, name, new)
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        if (state := optimizer.state.pop(old, None)) is not None:
            moments = {key: change(x) for key, x in sorted(state.items()) if x.dim()}
            optimizer.state[new] = {**state, **moments}


def check_sharded(config: SAEConfig, n_shards: int) -> None:
    """Raise InputError if training this system reads the rows of its weights elsewhere than in kernels."""
    if config.architecture not in _SYSTEMS:
        raise InputError(
            f"shards = {n_shards}: the dictionary of an SAE of architecture {config.architecture} cannot be divided, "
            f"only those of {', '.join(_SYSTEMS)}; leave shards out, and the ranks divide the rows of every batch"
        )
