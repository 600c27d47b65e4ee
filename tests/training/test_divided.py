"""A dictionary that is divided among ranks is trained as a whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from divided_cases import STEPS, assert_equal, step, stream, team_of
from hsae_cases import CASES, SIZES, D, K, make_training, random_parent
from ranks_runs import thorough
from sae_cases import small
from saeforest import memory
from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations
from saeforest.errors import InputError
from saeforest.optim import OptimConfig
from saeforest.ranks import ALONE, Ranks
from saeforest.saes import (
    AllocationConfig,
    AuxConfig,
    BatchTopKConfig,
    FromDataConfig,
    MatryoshkaConfig,
    RunLength,
    Setup,
    SystemConfig,
    TopKConfig,
    TreeAuxConfig,
    TreeConfig,
    build,
    training_of,
)
from saeforest.training.checkpoint import (
    SINGLE,
    tensors_of,
)
from saeforest.training.sharded import check_sharded, divide, rows_of
from saeforest.training.team import WholeTeam
from thread_ranks import in_ranks
from training.test_checkpoints import begun

# -- as a whole one


def levels(name: str, ranks: Ranks) -> dict[str, Tensor]:
    """The finished SAE of one of the cases in which one process equals the oracle of HSAE; on the first rank."""
    training = make_training(CASES[name], SIZES, K, lr=0.01)
    if CASES[name].parents:
        training.sae.parent.copy_(random_parent())
    team = team_of(ranks, ranks.size)
    team.begin({SINGLE: training}, stream(), 0)
    step(team, training, stream(), STEPS)
    team.gather_weights({SINGLE: training})
    return training.finish().state_dict() if ranks.first else {}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("binary, ghosts in a wide kernel", 3),
        ("projected, without copies", 2),
        *(pytest.param(name, 4, marks=thorough) for name in CASES),
    ],
)
def test_levels_are_those_of_one_process(name: str, size: int) -> None:
    """Losses of the links, replaced features, ghost gradients and the choice of parents, to the rounding of float64."""
    whole, (found, *_) = levels(name, ALONE), in_ranks(size, lambda ranks: levels(name, ranks))
    assert found.keys() == whole.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-12)


# -- rows that rest, numbers in few bits, features that start anew or change places

ROWS, WIDTH, LENGTH = 32, 12, 12
DEAD: dict[str, Any] = {"dead_after_tokens": 4 * ROWS}
# All dead features of a layer: those that start from the same token are equal, and compete for nothing.
AUX: dict[str, Any] = {"k": 40, "stride": 2, "detach": True, "bias": False, "rescale": True}
TREE = TreeConfig(
    (6, 12, 22),
    (2, 1, 1),
    aux=TreeAuxConfig(layers=None, **AUX),
    allocation=AllocationConfig(first=6, cap=6, root_reset_at=0.9, **DEAD),
)
# As the demo's tree; its features change places too.
EARNED = replace(
    TREE,
    selection="closed",
    budget="batch",
    layer_weights=0.02,
    allocation=AllocationConfig(
        rule="data",
        start="root",
        reinitialize=True,
        from_data=FromDataConfig(
            earned=0.05,
            every=4,
            sample=ROWS,
            window=4 * ROWS,
            min_count=2,
            until=1.0,
            dead_until=1.0,
            promote=1.2,
        ),
        **DEAD,
    ),
)
WHOLE: dict[str, SystemConfig] = {
    "topk": TopKConfig((40,), (3,), aux=AuxConfig(**AUX), encoder_bias=True, **DEAD),
    "batchtopk": BatchTopKConfig((40,), (3,), aux=AuxConfig(**AUX), **DEAD),
    "matryoshka": MatryoshkaConfig((8, 32), (3,), aux=AuxConfig(**AUX), **DEAD),
    "matryoshka, batch": MatryoshkaConfig((8, 32), (3,), selection="batch", aux=AuxConfig(**AUX), **DEAD),
    "tree": TREE,
    "tree, residual": replace(TREE, reads="residual", budget="batch"),
    "earned": EARNED,
}
FEW, LEAN = (
    {"rows": "active", "state": "int8"},
    {"rows": "active", "state": "int8", "weights": "bfloat16"},
)


class Trained(NamedTuple):
    tensors: dict[str, Tensor]
    own: set[str]
    """Those of which a rank has only its own rows."""
    events: set[str]


def trained(name: str, ranks: Ranks, shards: int, dtype: torch.dtype, **optim: str) -> Trained:
    """A training after its steps, as this rank has it."""
    sae = build(WHOLE[name], WIDTH, seed=1).to(dtype)
    settings = OptimConfig(**({"lr": 0.01, "batch_size": ROWS} | optim))  # pyright: ignore[reportArgumentType]
    training = training_of(sae, Setup(RunLength(LENGTH, ROWS), settings, dtype))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator).relu() @ torch.randn(6, WIDTH, generator=generator)
    x = x + 0.1 * torch.randn(400, WIDTH, generator=generator)
    data = ActivationStream(MemoryActivations(x, torch.arange(400), seed=0), ROWS)
    team = team_of(ranks, shards)
    team.begin({SINGLE: training}, data, 0)
    events = set()
    for _ in range(LENGTH):
        with team.sharing():
            said = training.step(data.next().x.to(dtype)).events
        events |= {event.log["event"] for event in said if event.log.get("features", event.moves)}
    tensors = {  # slots may be in another order
        key: x.sort(-1).values if key.endswith(("own_ids", "active_ids")) else x
        for key, x in tensors_of(training).items()
    }
    return Trained(tensors, set(rows_of(training)) if shards > 1 else set(), events)


def assert_divided(found: list[Trained], whole: Trained, shards: int, close: Callable[..., None]) -> None:
    for rank, ours in enumerate(found):
        assert ours.tensors.keys() == whole.tensors.keys()
        assert ours.events == whole.events
        for key, tensor in whole.tensors.items():
            close(ours.tensors[key], tensor[rank % shards :: shards] if key in ours.own else tensor)


@pytest.mark.parametrize(
    ("name", "size", "shards", "optim"),
    [
        ("tree", 3, 3, FEW),
        ("earned", 2, 2, FEW),
        ("batchtopk", 2, 2, {"rows": "active", "state": "bfloat16"}),
        *(
            pytest.param(name, size, shards, optim, marks=thorough)
            for name in WHOLE
            for size, shards, optim in ((4, 2, {}), (5, 5, FEW), (2, 2, {"state": "bfloat16"}))
        ),
    ],
)
def test_shards_train_as_one_process(name: str, size: int, shards: int, optim: dict[str, str]) -> None:
    """To the rounding of float64, in which random rounding to fewer bits has the same draws."""

    def close(found: Tensor, expected: Tensor) -> None:
        # The mean of moments with which features start anew is computed in float32.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 if name == "earned" else 1e-12)

    whole = trained(name, ALONE, 1, torch.float64, **optim)
    if isinstance(WHOLE[name], TreeConfig):
        happened = {"promoted", "started_anew", "parents"} if name == "earned" else {"reallocation"}
        assert happened <= whole.events
    found = in_ranks(size, lambda ranks: trained(name, ranks, shards, torch.float64, **optim))
    assert_divided(found, whole, shards, close)


@pytest.mark.parametrize("name", ["tree", *(pytest.param(n, marks=thorough) for n in ("topk", "earned"))])
def test_shards_with_weights_in_bfloat16_train_as_one_process(name: str) -> None:
    """In float32, where a last bit may decide in which direction a number is rounded, though hardly ever."""

    def close(found: Tensor, expected: Tensor) -> None:
        assert found.dtype == expected.dtype
        if found.numel():
            assert float((found.double() - expected.double()).abs().mean()) < 2e-6

    whole = trained(name, ALONE, 1, torch.float32, **LEAN)
    assert whole.tensors["training.sae.decoder"].dtype == torch.bfloat16
    found = in_ranks(2, lambda ranks: trained(name, ranks, 2, torch.float32, **LEAN))
    assert_divided(found, whole, 2, close)


@pytest.mark.parametrize("name", ["earned", *(pytest.param(n, marks=thorough) for n in ("topk", "tree"))])
def test_ranks_that_share_rows_have_the_bits_of_one_process_in_few_bits_too(name: str) -> None:
    whole = trained(name, ALONE, 1, torch.float32, **LEAN)
    for ours in in_ranks(2, lambda ranks: trained(name, ranks, 1, torch.float32, **LEAN)):
        assert_equal(ours.tensors, whole.tensors)
        assert ours.events == whole.events


# -- what a rank holds before the first step


@pytest.mark.parametrize("optim", [{}, FEW])
def test_a_rank_gets_its_own_rows_alone(optim: dict[str, Any]) -> None:
    """Of weights, and of the moments when a run goes on."""

    def work(ranks: Ranks) -> list[dict[str, Tensor]]:
        got: list[dict[str, Tensor]] = []

        def noted(get: Callable[[Any], dict[str, Tensor]]) -> Callable[[Any], dict[str, Tensor]]:
            return lambda argument: got.append(get(argument)) or got[-1]

        vars(ranks).update({name: noted(getattr(ranks, name)) for name in ("share", "receive")})
        training, data = begun("tree", **optim), stream()
        if ranks.first:
            step(WholeTeam(), training, data, 3)
        team_of(ranks, 2).begin({SINGLE: training}, data, 3)
        return got

    _, (shared, rows) = in_ranks(2, work)
    width = begun("tree").sae.d_sae
    moments = {"exp_avg", "exp_avg_sq"}
    assert moments < {name.rsplit(".", 1)[-1] for name in rows}
    assert {len(tensor) for tensor in rows.values()} == {width // 2}
    assert (width, D) not in {tuple(tensor.shape) for tensor in shared.values()}


def test_a_rank_never_holds_the_whole_dictionary() -> None:
    width, d, n_shards = 2**16, 256, 8
    ranks = Ranks()
    ranks.rank, ranks.size = 1, n_shards
    config = TopKConfig((width,), (4,))
    memory.give_back()
    memory.reset_peak()
    before = memory.resident()
    with team_of(ranks, n_shards).building():
        sae = build(config, d)
    divide(training_of(sae, Setup(RunLength(10, 8), OptimConfig(batch_size=8))), ranks)
    assert memory.peak() - before < 2 * 4 * width * d / 2


@pytest.mark.parametrize("system", ["expert_hsae", "matching_pursuit"])
def test_other_systems_are_refused_with_what_can_be_done(system: str) -> None:
    with pytest.raises(InputError, match=f"{system} cannot be divided, only .*; leave shards out") as error:
        check_sharded(small(system), 2)
    assert "\n" not in str(error.value)
