"""Checkpoints: all that they hold is looked at before anything is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edits import edit_json, forget_checksums
from sae_cases import small
from saeforest import saes
from saeforest.activations import ActivationStream
from saeforest.activations.sources import MemoryActivations
from saeforest.errors import InputError
from saeforest.optim import OptimConfig
from saeforest.saes import HSAEConfig, RunLength, SystemConfig, Training, TreeConfig, start_training
from saeforest.training.checkpoint import SINGLE, latest_checkpoint, load_checkpoint, save_checkpoint

D_IN, BATCH, STEPS, N_STEPS = 8, 16, 5, 40
SYSTEMS: dict[str, SystemConfig] = {
    **{name: small(name, normalize_activations="none") for name in saes.SYSTEMS},
    "tree": TreeConfig(layer_sizes=(4, 8), k_per_layer=(2, 2)),
    "hsae": HSAEConfig(layer_sizes=(4, 8), k_per_layer=(2, 2), normalize_activations="none"),
}

TENSORS = f"{SINGLE}.safetensors"


def stream() -> ActivationStream:
    x = torch.randn(100, D_IN, generator=torch.Generator().manual_seed(0))
    return ActivationStream(MemoryActivations(x, torch.arange(100), seed=0), BATCH)


def begun(system: str = "tree", n_steps: int = N_STEPS, **optim: Any) -> Training:
    run = RunLength(n_steps, BATCH)
    return start_training(SYSTEMS[system], D_IN, run, optim=OptimConfig(batch_size=BATCH, **optim))


def train(training: Training, data: ActivationStream, n: int) -> None:
    for _ in range(n):
        training.step(data.next().x)


def write(folder: Path, system: str, **optim: Any) -> Path:
    """A checkpoint of a system after five steps."""
    data, training = stream(), begun(system, **optim)
    train(training, data, STEPS)
    save_checkpoint(folder, STEPS, {SINGLE: training}, data.state(), "of the data")
    return folder / f"step-{STEPS:08}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tree. Shared: copy it before changing it."""
    return write(tmp_path_factory.mktemp("checkpoints"), "tree")


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    """A copy without checksums: what is inside must be looked at."""
    copy = Path(shutil.copytree(written, tmp_path / written.name))
    forget_checksums(copy)
    return copy


def refused(checkpoint: Path, match: str, system: str = "tree", **optim: Any) -> None:
    training = begun(system, **optim)
    before = {name: tensor.clone() for name, tensor in training.state_dict().items()}
    data, rng = stream(), torch.get_rng_state()
    with pytest.raises(InputError, match=match) as error:
        load_checkpoint(checkpoint, {SINGLE: training}, data, "of the data")
    assert str(checkpoint) in str(error.value)
    assert "\n" not in str(error.value)
    assert "optim.lr" not in str(error.value)
    assert len(str(error.value)) < 600
    # Nothing has been touched: whoever holds these may go on with them.
    assert all(torch.equal(before[name], tensor) for name, tensor in training.state_dict().items())
    assert not training.optimizer.state_dict()["state"]
    assert data.state() == {"epoch": 0, "block": 0, "row": 0}
    assert torch.equal(rng, torch.get_rng_state())


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(checkpoint / TENSORS)
    change(tensors)
    save_file(tensors, checkpoint / TENSORS)


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[:1] = value
        return tensor

    return fill


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_it_comes_back(tmp_path: Path, system: str) -> None:
    checkpoint = write(tmp_path, system)
    data, training = stream(), begun(system)
    assert load_checkpoint(checkpoint, {SINGLE: training}, data, "of the data") == STEPS == training.done
    train(training, data, STEPS)
    whole, same = stream(), begun(system)
    train(same, whole, 2 * STEPS)
    assert whole.state() == data.state()
    found = training.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in same.state_dict().items())


def test_one_of_an_older_version_is_told(damaged: Path) -> None:
    edit_json(damaged / "state.json", format_version=...)
    refused(
        damaged,
        "checkpoint of format 1, but this saeforest reads formats 2 and 3; finish the run with the version",
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", -1), ("step", 0), ("step", 10**9), ("step", 10**30), ("step", 5.0), ("step", "5"), ("step", True),
     ("step", None), ("step", ...), ("step", 6), ("data", []), ("data", ...), ("data", None), ("fingerprint", 3),
     ("fingerprint", "other"), ("fingerprint", "x" * 100_000), ("checksums", [])],
)  # fmt: skip
def test_a_state_of_another_kind(damaged: Path, key: str, value: Any) -> None:
    edit_json(damaged / "state.json", **{key: value})
    refused(damaged, "state.json|have changed")


@pytest.mark.parametrize("key", ["epoch", "block", "row"])
@pytest.mark.parametrize("value", [-1, 10**30, 1.5, "0", None, ..., [0]])
def test_a_position_of_another_kind(damaged: Path, key: str, value: Any) -> None:

    def change(state: dict[str, Any]) -> None:
        state["data"] |= {key: value}
        state["data"] = {name: v for name, v in state["data"].items() if v is not ...}

    edit_json(damaged / "state.json", change)
    refused(damaged, f"key 'data.{key}'")


def test_a_block_that_there_is_not(damaged: Path) -> None:
    edit_json(damaged / "state.json", lambda state: state["data"].update(block=2))
    refused(damaged, r"'data.block' is 2, but an epoch has 1 blocks")


def test_a_row_that_there_is_not(damaged: Path) -> None:
    """Known when the block has been read. It was an endless loop, or the block behind it."""
    edit_json(damaged / "state.json", lambda state: state["data"].update(row=101))
    data = stream()
    load_checkpoint(damaged, {SINGLE: begun()}, data, "of the data")
    with pytest.raises(InputError, match="row 101 of block 0 of the activations: the block has 100 rows"):
        data.next()
    with pytest.raises(ValueError, match="negative"):
        data.restore({"epoch": 0, "block": 0, "row": -1})


def test_a_step_beyond_the_run(written: Path) -> None:
    with pytest.raises(InputError, match="step 5, but the run has 4 steps"):
        load_checkpoint(written, {SINGLE: begun(n_steps=4)}, stream(), "of the data")


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize(
    "change",
    [lambda t: t[:1], lambda t: t[:-1], lambda t: t.T.contiguous(), lambda t: t.flatten(), lambda t: t.double(),
     lambda t: t.bfloat16(), lambda t: t.long(), lambda t: torch.cat([t, t]), lambda t: t[:0]],
)  # fmt: skip
def test_moments_of_another_kind(damaged: Path, name: str, change: Any) -> None:
    """Compiled kernels look at no bounds: fewer rows than the weights were read and written past their end."""
    edit_tensors(damaged, lambda t: t.update({f"optimizer.0.{name}": change(t[f"optimizer.0.{name}"])}))
    refused(damaged, rf"tensor 'optimizer\.0\.{name}' is \[.*; expected \[.* does not fit this run")


def test_moments_kept_in_another_type(written: Path) -> None:
    refused(written, "is .* of float32; expected .* of bfloat16", state="bfloat16")
    refused(written, r"tensor 'optimizer\.0\.last' is missing", rows="active")


def test_moments_in_8_bits(tmp_path: Path) -> None:
    optim: dict[str, Any] = {"state": "int8", "rows": "active"}
    checkpoint = write(tmp_path, "tree", **optim)
    (data, training), (whole, same) = ((stream(), begun(**optim)) for _ in range(2))
    load_checkpoint(checkpoint, {SINGLE: training}, data, "of the data")
    train(training, data, STEPS)
    train(same, whole, 2 * STEPS)
    assert torch.equal(training.sae.encoder, same.sae.encoder)
    forget_checksums(checkpoint)
    for name, value, match in (
        ("exp_avg", -128, "holds -128, which stands for no number"),
        ("exp_avg_sq_exponents", 255, "holds exponents of infinite numbers"),
    ):
        before = load_file(checkpoint / TENSORS)
        edit_tensors(checkpoint, lambda t, n=f"optimizer.0.{name}", v=value: t.update({n: filled(v)(t[n])}))
        refused(checkpoint, match, **optim)
        save_file(before, checkpoint / TENSORS)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("optimizer.0.exp_avg", filled(float("nan")), "holds NaN or infinite values"),
        ("optimizer.0.exp_avg_sq", filled(float("inf")), "holds NaN or infinite values"),
        ("optimizer.0.exp_avg_sq", filled(-1.0), "squares, but some of them are negative"),
        ("optimizer.0.step", lambda t: t * 0 + float("inf"), "holds NaN or infinite values"),
        ("optimizer.0.step", lambda t: t * 0 - 1, "counts steps, but holds numbers outside 0 to 5"),
        ("optimizer.0.step", lambda t: t * 0 + 1e9, "counts steps"),
        ("training.sae.encoder", filled(float("nan")), "holds NaN or infinite values"),
        ("training.sae.b_dec", lambda t: t[..., :-1].contiguous(), "does not fit this run"),
        ("training.sae.parent", filled(11), r"parent\[0\] = 11: expected -1 \(root\)"),
        ("training.sae.parent", lambda t: t.float(), "does not fit this run"),
        ("training.steps_since_fired", filled(-1), "counts steps"),
        ("training.steps_since_fired", filled(10**12), "counts steps"),
        ("torch_rng", lambda t: t[:-1], "does not fit this run"),
        ("torch_rng", lambda t: torch.full_like(t, 255), "not a random generator's state"),
        ("torch_rng", lambda t: t.float(), "does not fit this run"),
    ],
)
def test_a_tensor_that_training_does_not_leave(damaged: Path, name: str, change: Any, match: str) -> None:
    edit_tensors(damaged, lambda tensors: tensors.update({name: change(tensors[name])}))
    refused(damaged, match)


def test_every_tensor_is_needed_and_no_other(damaged: Path) -> None:
    whole = load_file(damaged / TENSORS)
    for name in whole:
        save_file({n: tensor for n, tensor in whole.items() if n != name}, damaged / TENSORS)
        refused(damaged, f"tensor '{name}' is missing")
    for name in ("optimizer.9.exp_avg", "optimizer.x.y", "training.more", "more"):
        save_file({**whole, name: torch.zeros(1)}, damaged / TENSORS)
        refused(damaged, f"tensor '{name}' is not part of this run")


@pytest.mark.parametrize("wrong", [-1, 10**9])
def test_the_counter_of_an_hsae(tmp_path: Path, wrong: int) -> None:
    """What it replaces by children is drawn by this number."""
    checkpoint = write(tmp_path, "hsae")
    forget_checksums(checkpoint)
    edit_tensors(checkpoint, lambda tensors: tensors.update({"training._extra_state": torch.tensor(wrong)}))
    refused(checkpoint, "'training._extra_state' counts steps", "hsae")


def test_a_flipped_bit_is_noticed(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written, tmp_path / written.name))
    data = bytearray((copy / TENSORS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / TENSORS).write_bytes(data)
    refused(copy, r"state.safetensors: damaged: it does not match its checksum .*; delete this checkpoint")


def test_the_latest_is_the_one_of_most_steps(tmp_path: Path) -> None:
    for name in ("step-00000020", "step-99999999", "step-100000000", "step-00000020.bak", "step-x", "step-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-300000000").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"
    assert latest_checkpoint(tmp_path / "step-x") is None
