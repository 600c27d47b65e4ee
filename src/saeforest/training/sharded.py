"""Ranks that divide the rows of a dictionary, and perhaps the rows of the batch too.

With S shards, rank r has the rows of the features f with f % S = r % S, their gradients and the optimizer's state for
them. Everything else is the same on all ranks (`kernels/shards.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import shards, sharing
from ..ranks import ALONE, Ranks
from ..saes import Training, TreeConfig
from ..saes.base import SAEConfig
from .log import Log
from .team import Division, Team, check_same

# The systems whose training reads the rows of its weights in kernels alone.
_SYSTEMS = ("topk", "tree")


class ShardedTeam(Team):
    """A table of ranks: its columns divide the dictionary, and its rows the batch."""

    has_all = False

    def __init__(self, ranks: Ranks, division: Division) -> None:
        super().__init__(ranks, division)
        self._data = self._features = ALONE  # until all ranks begin

    @contextmanager
    def sharing(self) -> Iterator[None]:
        with sharing(self._data), shards.sharded(self._features):
            yield

    def _begin(self, trained: Mapping[str, Training]) -> None:
        super()._begin(trained)
        self._data, self._features = self.ranks.mesh(self.division.shards)
        for training in trained.values():
            divide(training, self._features)

    def save(
        self,
        step: int,
        trained: Mapping[str, Training],
        logs: Mapping[str, Log],
        write: Callable[[int], None],
    ) -> None:
        check_same(trained, step, self._data)
        for training in trained.values():
            self._join(training)
        try:
            super().save(step, trained, logs, write)
        finally:
            for training in trained.values():
                if self.ranks.first and step < training.run.n_steps:  # at the end it keeps all rows
                    divide(training, self._features)

    def gather_state(self, trained: Mapping[str, Training], step: int) -> None:
        pass  # `save` has joined them

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


def divide(training: Training, features: Ranks) -> None:
    """Keep only the rows of this rank, one of those among which the dictionary is divided."""
    device = training.sae.b_dec.device
    _change(training, lambda whole: whole[features.rank :: features.size].clone().to(device))


def _change(training: Training, change: Callable[[Tensor], Tensor]) -> None:
    """Put `change(rows)` in the place of the rows of the weights and of the optimizer's moments, in a fixed order."""
    optimizer = training.optimizer
    for name in ("encoder", "decoder"):
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
            f"shards = {n_shards}: the dictionary of an SAE of architecture {config.architecture} cannot be divided; "
            f"expected one of {', '.join(_SYSTEMS)}, or no shards"
        )
    if isinstance(config, TreeConfig) and (
        config.allocation.reinitialize or config.allocation.from_data.promote
    ):
        raise InputError(
            f"shards = {n_shards}: features that start anew or change places need whole weights; set "
            "sae.allocation.reinitialize and sae.allocation.from_data.promote to their defaults, or leave shards out"
        )
