"""Ranks that divide a dictionary: their team, what they read, and their steps."""

from __future__ import annotations

import torch
from torch import Tensor

from hsae_cases import BATCH, D
from ranks_runs import KILLS
from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations
from saeforest.ranks import Ranks
from saeforest.saes import Training
from saeforest.training.sharded import ShardedTeam
from saeforest.training.team import Division, Team, WholeTeam

STEPS = 13 if KILLS > 1 else 7


def team_of(ranks: Ranks, shards: int, *, whole_checkpoints: bool = False) -> Team:
    return ShardedTeam(ranks, Division("auto", shards, whole_checkpoints)) if shards > 1 else WholeTeam(ranks)


def stream() -> ActivationStream:
    x = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    return ActivationStream(MemoryActivations(x, torch.arange(100), seed=0), BATCH)


def step(team: Team, training: Training, data: ActivationStream, n: int) -> None:
    for _ in range(n):
        with team.sharing():
            training.step(data.next().x.to(training.sae.dtype))


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
