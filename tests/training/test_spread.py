"""Ranks with SAEs of their own: the first has the state of all when it saves, and gives it to those that go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saeforest.ranks import ALONE, Ranks
from saeforest.saes import Training
from saeforest.training.checkpoint import (
    Parts,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    tensors_of,
)
from saeforest.training.team import Division, SpreadTeam
from thread_ranks import in_ranks
from training.test_checkpoints import BATCH, begun, stream

NAMES = ("topk", "tree", "hsae")
STEPS = 5


def trained_by(ranks: Ranks, folder: Path) -> dict[str, Training]:
    """Go on for some steps from the last checkpoint, if there is one, and write another. Those that this rank has."""
    team = SpreadTeam(ranks, Division("saes"), {name: i % ranks.size for i, name in enumerate(NAMES)})
    own = team.own(list(NAMES))
    trained = {name: begun(name, n_steps=8 * STEPS) for name in (NAMES if ranks.first else own)}
    data = stream()
    last = latest_checkpoint(folder) if ranks.first else None
    start = team.begin(trained, data, load_checkpoint(last, trained, data) if last else 0)
    for _ in range(STEPS):
        x = data.next().x
        assert len(x) == BATCH
        for name in own:
            with team.sharing():
                trained[name].step(x)

    def write(step: int, parts: Parts | None) -> None:
        if ranks.first:
            save_checkpoint(folder, step, trained, data.state(), parts=parts)

    team.save(start + STEPS, trained, {}, write)
    return trained


def state(trained: Mapping[str, Training]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": x for name, training in trained.items() for key, x in tensors_of(training).items()
    }


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 1, 2)])
def test_they_go_on_as_any_number_of_ranks(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Weights, moments, counters and parents of one process that was never stopped, bit for bit."""
    for size in sizes:
        in_ranks(size, lambda ranks: trained_by(ranks, tmp_path / "spread"))
    for _ in sizes[1:]:
        trained_by(ALONE, tmp_path / "alone")
    alone = trained_by(ALONE, tmp_path / "alone")
    last = latest_checkpoint(tmp_path / "spread")
    assert last is not None
    found = {name: begun(name, n_steps=8 * STEPS) for name in NAMES}
    assert load_checkpoint(last, found, stream()) == STEPS * len(sizes)
    ours, theirs = state(found), state(alone)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def test_the_first_keeps_no_moments_of_others(tmp_path: Path) -> None:
    """They would be twice the weights of all SAEs of the run."""
    first, second = in_ranks(2, lambda ranks: trained_by(ranks, tmp_path / "spread"))
    assert first.keys() == set(NAMES)
    assert second.keys() == {"tree"}
    assert [name for name, training in first.items() if not training.optimizer.state] == ["tree"]
    assert second["tree"].optimizer.state
