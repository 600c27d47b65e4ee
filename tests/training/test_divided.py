"""A dictionary that is divided among ranks is trained as a whole one, and saved by all that have a part of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edits import forget_checksums
from hsae_cases import BATCH, CASES, SIZES, D, K, make_training, random_parent
from ranks_runs import KILLS, thorough
from sae_cases import small
from saeforest import memory
from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations
from saeforest.errors import InputError
from saeforest.files import write_tensors
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
    Training,
    TreeAuxConfig,
    TreeConfig,
    build,
    training_of,
)
from saeforest.training import checkpoint as checkpoints
from saeforest.training.checkpoint import (
    SINGLE,
    Parts,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    tensors_of,
)
from saeforest.training.sharded import ShardedTeam, check_sharded, divide, rows_of
from saeforest.training.team import Division, Team, WholeTeam
from saeforest.verify import verify
from thread_ranks import in_ranks
from training.test_checkpoints import begun

# Moments in 8 bits have exponents for each row, and kernels of their own to be compiled.
STATE = "int8" if KILLS > 1 else "float32"
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


# -- checkpoints


def saved(team: Team, training: Training, data: ActivationStream, folder: Path, number: int = STEPS) -> None:
    def write(step: int, parts: Parts | None) -> None:
        if team.ranks.first:
            save_checkpoint(folder, step, {SINGLE: training}, data.state(), "of the data", parts=parts)

    team.save(number, {SINGLE: training}, {}, write)


def stopped(folder: Path, ranks: Ranks, shards: int, system: str, **how: Any) -> dict[str, Tensor]:
    """Train, write a checkpoint, and go on; the state in the end, of this rank."""
    training, data, team = begun(system, state=STATE), stream(), team_of(ranks, shards, **how)
    team.begin({SINGLE: training}, data, 0)
    step(team, training, data, STEPS)
    saved(team, training, data, folder)
    step(team, training, data, 3)
    return tensors_of(training)


def resumed(folder: Path, ranks: Ranks, shards: int, system: str) -> dict[str, Tensor]:
    training, data, team = begun(system, state=STATE), stream(), team_of(ranks, shards)
    start = 0
    if ranks.first:
        (path,) = folder.iterdir()
        start = load_checkpoint(path, {SINGLE: training}, data, "of the data")
    assert team.begin({SINGLE: training}, data, start) == STEPS
    step(team, training, data, 3)
    return tensors_of(training)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize(
    ("size", "shards", "system"),
    [
        (2, 2, "tree"),
        *(
            pytest.param(size, shards, system, marks=thorough)
            for size, shards in ((1, 1), (2, 2), (4, 2), (4, 4))
            for system in ("topk", "tree", "jumprelu", "hsae")
            if (size, system) != (2, "tree")
        ),
    ],
)
def test_shards_go_on_to_the_same_bits(size: int, shards: int, system: str, tmp_path: Path) -> None:
    """As if never stopped; and what they have written is the state of one file, for any number of shards."""
    undisturbed = in_ranks(size, lambda ranks: stopped(tmp_path / "run", ranks, shards, system))
    (written,) = (tmp_path / "run").iterdir()
    assert len(list(written.glob("*.safetensors"))) == shards
    for ours, theirs in zip(
        in_ranks(size, lambda ranks: resumed(tmp_path / "run", ranks, shards, system)),
        undisturbed,
        strict=True,
    ):
        assert_equal(ours, theirs)
    in_ranks(size, lambda ranks: stopped(tmp_path / "one", ranks, shards, system, whole_checkpoints=True))
    (one,) = (tmp_path / "one").iterdir()
    assert [path.name for path in one.glob("*.safetensors")] == [f"{SINGLE}.safetensors"]
    read = []
    for path in (written, one):
        training = begun(system, state=STATE)
        assert load_checkpoint(path, {SINGLE: training}, stream(), "of the data") == STEPS
        read.append(tensors_of(training))
    assert_equal(*read)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two shards. Shared: not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    in_ranks(2, lambda ranks: stopped(folder, ranks, 2, "topk"))
    (path,) = folder.iterdir()
    return path


def test_verify_looks_at_every_shard(written: Path) -> None:
    found = {finding.path.name for finding in verify(written)}
    assert found == {"state.json", "state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.clear(),
            r"tensor 'training.sae.encoder' is \[4, 8\] of float32; expected \[8, 8\]",
        ),
        (lambda tensors: tensors.update(other=torch.ones(1)), r"00001-of-00002.safetensors: tensor 'other'"),
        (
            lambda tensors: tensors.update({"training.sae.decoder": torch.ones(4, 3)}),
            r"tensor 'training.sae.decoder' is \[4, 3\] of float32; beside the other shards it would be \[4, 8\]",
        ),
        (
            lambda tensors: tensors.update({"training.sae.encoder": torch.tensor(1.0)}),
            r"tensor 'training.sae.encoder' is \[4, 8\] of float32; beside the other shards it would be \[3, 8\]",
        ),
    ],
)
def test_a_shard_of_another_kind(
    change: Callable[[dict[str, Tensor]], object], said: str, written: Path, tmp_path: Path
) -> None:
    copy = tmp_path / written.name
    copy.mkdir()
    for file in written.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    forget_checksums(copy)
    file = copy / "state-00002-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(InputError, match=said) as error:
        load_checkpoint(copy, {SINGLE: begun("topk", state=STATE)}, stream(), "of the data")
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match=r"00002-of-00002.safetensors: no such file"):
        load_checkpoint(copy, {SINGLE: begun("topk", state=STATE)}, stream(), "of the data")


@pytest.mark.parametrize("shard", [1, 2])
def test_a_full_disk_leaves_the_checkpoint_before(
    shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rank cannot write: the first one says so, the others go on."""

    def full(path: Path, tensors: dict[str, Tensor]) -> str:
        if f"{shard:05}-of" in path.name and training_on:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_tensors(path, tensors)

    training_on: list[bool] = []
    monkeypatch.setattr(checkpoints, "write_tensors", full)

    def work(ranks: Ranks) -> list[str]:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)
        saved(team, training, data, tmp_path, 1)
        training_on.append(True)
        step(team, training, data, 1)
        failed = []
        try:
            saved(team, training, data, tmp_path, 2)
        except OSError as error:
            failed.append(str(error))
        step(team, training, data, 1)
        return failed

    failed, others = in_ranks(2, work)
    assert others == []
    assert len(failed) == 1
    assert "No space left on device" in failed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    last = latest_checkpoint(tmp_path)
    assert last is not None
    assert load_checkpoint(last, {SINGLE: begun("topk")}, stream(), "of the data") == 1


def test_all_stay_until_a_checkpoint_is_whole(tmp_path: Path) -> None:
    """A rank that is asked to stop ends after it has written its shard, and with it all others."""

    def work(ranks: Ranks) -> bool:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)

        def write(number: int, parts: Parts | None) -> None:
            assert parts is not None

            def slowly(folder: Path) -> dict[str, str]:
                checksums = parts.write(folder)
                with ranks._world.waiting():  # pyright: ignore[reportAttributeAccessIssue]
                    time.sleep(0.3)
                return checksums

            slow = parts._replace(write=slowly)
            save_checkpoint(tmp_path, number, {SINGLE: training}, data.state(), "of the data", parts=slow)

        team.save(1, {SINGLE: training}, {}, write)
        return latest_checkpoint(tmp_path) is not None

    assert in_ranks(2, work) == [True, True]


def test_a_folder_that_cannot_be_made_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(ranks: Ranks) -> bool:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)
        with suppress(OSError):
            saved(team, training, data, tmp_path / "file" / "below", 1)
            return False
        return True

    assert in_ranks(2, work) == [True, False]
