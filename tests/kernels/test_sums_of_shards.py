"""Sums over the ranks that divide a dictionary: their order, and what they send. Rows that move from rank to rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saeforest.kernels import shards
from saeforest.kernels.shards import _FEW_NUMBERS
from saeforest.optim import OptimConfig
from saeforest.ranks import Ranks
from saeforest.saes import RunLength, TopKConfig, start_training
from saeforest.training.sharded import divide
from thread_ranks import ThreadRanks, in_ranks


@pytest.mark.parametrize("shape", [(), (7, 3), (_FEW_NUMBERS, 1), (130, 129)])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_sum_is_in_the_order_of_ranks_and_a_rank_sends_less_than_twice_of_it(
    size: int, shape: tuple[int, ...]
) -> None:
    parts = [torch.randn(shape, generator=torch.Generator().manual_seed(rank)) for rank in range(size)]
    right = parts[0]
    for part in parts[1:]:
        right = right + part

    def work(ranks: Ranks) -> tuple[Tensor, int]:
        assert isinstance(ranks, ThreadRanks)
        with shards.sharded(ranks):
            return shards.summed(parts[ranks.rank]), ranks.sent

    for total, sent in in_ranks(size, work):
        assert torch.equal(total, right)
        if right.numel() >= _FEW_NUMBERS:
            assert sent <= 2 * (size - 1) / size * right.nbytes + 8 * size
        else:
            assert sent == (size - 1) * right.nbytes


def test_a_step_of_many_shards_sends_little_more_than_one_of_two() -> None:
    def sent(ranks: Ranks) -> int:
        optim = OptimConfig(batch_size=64, precision="float32")
        training = start_training(TopKConfig((24,), (2,)), 512, RunLength(10, 64), optim=optim)
        assert isinstance(ranks, ThreadRanks)
        divide(training, ranks)
        with shards.sharded(ranks):
            training.step(torch.randn(64, 512, generator=torch.Generator().manual_seed(0)))
        return ranks.sent

    two, six = (max(in_ranks(size, sent)) for size in (2, 6))
    assert 64 * 512 * 4 < two < six < 2 * two  # and five times, if each sent the others all it has


def test_rows_move_from_rank_to_rank() -> None:
    whole = torch.randn(11, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    at = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    some, new = torch.tensor([7, 0, 3]), torch.ones(3, 4)

    def work(ranks: Ranks) -> tuple[Tensor, Tensor]:
        with shards.sharded(ranks):
            own = whole[ranks.rank :: ranks.size].clone()
            assert torch.equal(shards.rows_of(own, some), whole[some])
            assert torch.equal(shards.rows_of(own, slice(2, 9)), whole[2:9])
            shards.rearrange(own, at)
            moved = own.clone()
            shards.put_rows(own, some, new)
            return moved, own

    for size in (1, 2, 3):
        for rank, (moved, put) in enumerate(in_ranks(size, work)):
            right = whole[at]
            assert torch.equal(moved, right[rank::size])
            right[some] = new.bfloat16()
            assert torch.equal(put, right[rank::size])
