"""`saeforest.train`: on tensors, sources and configurations, in memory and in folders, and its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saeforest
from api_cases import SMALL, activations, error
from llama_cases import MakeConfig
from saeforest import InputError, RunFolder, TrainedRun
from saeforest.config import TrainConfig
from saeforest.saes import TopKConfig, TreeSAE
from saeforest.stopping import Interrupted
from saeforest.training.log import read_log
from saeforest.worlds import recover
from training_cases import TIMES, at_step, ctrl_c


def test_a_tensor_an_array_and_a_folder_train_alike(run: TrainedRun, tmp_path: Path) -> None:
    array = saeforest.train(activations().double().numpy(), "tree", **SMALL)
    folder = saeforest.train(activations(), "tree", out=tmp_path / "run", **SMALL)
    for other in (array, folder):
        for name, tensor in run.sae.tensors().items():
            assert torch.equal(tensor, other.sae.tensors()[name]), name
    assert isinstance(run.sae, TreeSAE)
    assert run.folder is None
    assert folder.folder == RunFolder(tmp_path / "run")
    assert [line["step"] for line in run.log] == [1, 2, 4, 6]
    timeless = [{k: v for k, v in line.items() if k not in TIMES} for line in run.log]
    assert timeless == [{k: v for k, v in line.items() if k not in TIMES} for line in folder.log]
    assert read_log(tmp_path / "run")[-1]["event"] == "finished"
    assert torch.equal(saeforest.load(tmp_path / "run").decoder, run.sae.decoder)


def test_a_finished_run_is_returned_again_and_only_for_its_own_call(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = saeforest.train(activations(), out=out, **SMALL)
    before = (out / "log.jsonl").read_bytes()
    again = saeforest.train(activations(), out=out, **SMALL)
    assert torch.equal(first.sae.decoder, again.sae.decoder)
    assert (out / "log.jsonl").read_bytes() == before
    said = error(lambda: saeforest.train(activations(seed=1), out=out, **SMALL))
    assert "on other activations" in said
    said = error(lambda: saeforest.train(activations(), out=out, **{**SMALL, "steps": 7}))
    assert "holds a finished run with tokens" in said


def test_a_stopped_run_goes_on_with_the_same_bits(
    run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    at_step(monkeypatch, 3, ctrl_c)
    with pytest.raises(Interrupted):
        saeforest.train(activations(), out=out, **SMALL)
    monkeypatch.undo()
    assert not (out / "sae").exists()
    said = error(lambda: saeforest.train(activations(seed=1), out=out, **SMALL))
    assert "no longer" in said or "other" in said
    done = saeforest.train(activations(), out=out, **SMALL)
    assert torch.equal(done.sae.decoder, run.sae.decoder)


def test_a_whole_configuration_trains_in_memory_as_in_a_folder(
    tiny_config: MakeConfig, finished_run: Path, tmp_path: Path
) -> None:
    in_memory = saeforest.train(tiny_config())
    assert torch.equal(in_memory.sae.decoder, saeforest.load(finished_run).decoder)
    assert in_memory.folder is None
    assert [line["step"] for line in in_memory.log] == [
        line["step"] for line in read_log(finished_run) if "event" not in line
    ]
    on_disk = tiny_config(activations={"store": "disk"})
    assert "give out" in error(lambda: saeforest.train(on_disk))


def test_a_source_of_blocks(tmp_path: Path) -> None:
    world = saeforest.synthetic("tree", depth=2, branching=3, roots=4, d=16)
    run = saeforest.train(world, batch_size=64, out=tmp_path / "run", **SMALL)
    assert run.sae.d_in == 16
    assert run.config.batch_size == 64
    with pytest.raises(InputError, match="trained on a tensor in Python"):
        saeforest.measure(run)


def test_defaults_follow_from_the_data() -> None:
    sizes: dict[str, Any] = {"layer_sizes": 64, "k_per_layer": 2}
    run = saeforest.train(activations(20_000), "topk", epochs=1, **sizes)
    assert run.config.optim.batch_size == 20_000 // 64
    assert run.log[-1]["step"] == 64
    assert run.config.optim.lr == pytest.approx(2e-4 * (2**14 / 64) ** 0.5)
    given = saeforest.train(activations(), TopKConfig((64,), (2,)), steps=2, lr=1e-3, batch_size=32, seed=3)
    assert (given.config.optim.lr, given.config.seed, given.config.tokens) == (1e-3, 3, 64)


def test_a_known_tree_is_learned_and_measured() -> None:
    """Four roots with three children each, exclusive and orthogonal: most edges are found."""
    world = saeforest.synthetic("tree", depth=2, branching=3, roots=4, p_root=0.2, p_child=0.3, d=16)
    settings: dict[str, Any] = {"normalize_activations": "none", "activation_threshold": 0.2}
    run = saeforest.train(
        world.held_out(40_000).x,
        "tree",
        layer_sizes=(4, 12),
        k_per_layer=(2, 2),
        batch_size=512,
        steps=800,
        lr=1e-2,
        **settings,
    )
    sample = world.sample(8_000, torch.Generator().manual_seed(1))
    sae = run.sae
    with torch.no_grad():
        code = sae.encode(sample.x)
    found = recover(
        world,
        sample,
        decoder=sae.decoder,
        encoder=sae.encoder,
        code=code,
        forest=sae.forest,
        threshold=0.2,
    )
    assert found.mcc is not None
    assert found.mcc > 0.8
    assert found.edges.f1 is not None
    assert found.edges.f1 > 0.7
    records = saeforest.measure(run, sample.x, ["reconstruction", "coverage", "hierarchy"])
    assert records["reconstruction"].value["fve"] > 0.9  # pyright: ignore[reportOptionalOperand]
    # A child of a Tree SAE fires only where its parent does.
    assert records["coverage"].value["min"] == 1


X = activations()
TRAIN_MISTAKES: dict[str, Callable[[], object]] = {
    "architecture = 'tre': expected one of tree": lambda: saeforest.train(X, "tre"),
    "did you mean layer_sizes?": lambda: saeforest.train(X, layersizes=(4, 8)),
    "seeds: no argument of train, and no setting of architecture tree; did you mean seed?; expected out, steps, ": (
        lambda: saeforest.train(X, seeds=3)
    ),
    "did you mean lr?": lambda: saeforest.train(X, learning_rate=1e-3),
    "for d_sae and k give layer_sizes=(32,), k_per_layer=(3,)": lambda: saeforest.train(X, d_sae=32, k=3),
    "for d_sae and k give layer_sizes=(32,), k_per_layer=(5,)": lambda: saeforest.train(X, "topk", k=5),
    "architecture: expected one of tree": lambda: saeforest.train(X, 3),  # pyright: ignore[reportArgumentType]
    "layer_sizes: architecture is a whole configuration": lambda: saeforest.train(
        X, TopKConfig((8,), (2,)), layer_sizes=8
    ),
    "k_per_layer[0] = 9: expected 1 to 4": lambda: saeforest.train(X, layer_sizes=(4, 8), k_per_layer=(9, 1)),
    "k_per_layer [2] has 1 entries but layer_sizes [4, 8] has 2": lambda: saeforest.train(
        X, layer_sizes=(4, 8), k_per_layer=(2,)
    ),
    "layer_sizes = '48': expected a whole number for each layer": lambda: saeforest.train(
        X, layer_sizes="48", k_per_layer=(2,)
    ),
    "allocation.frst: no setting of architecture tree": lambda: saeforest.train(X, allocation={"frst": 1}),
    "allocation.first = -1: expected": lambda: saeforest.train(X, allocation={"first": -1}),
    "batch_size = 2,000: data has 1,000 rows": lambda: saeforest.train(X, **SMALL, batch_size=2_000),
    "data: has shape [8]: expected activations [n, d]": lambda: saeforest.train(X[0], **SMALL),
    "data: has shape [0, 8]": lambda: saeforest.train(X[:0], **SMALL),
    "data: tensor of torch.int64": lambda: saeforest.train(X.long(), **SMALL),
    "data: array of int64": lambda: saeforest.train(np.ones((9, 3), dtype=np.int64), **SMALL),
    "data: row 7 holds NaN": lambda: saeforest.train(X.index_fill(0, torch.tensor([7]), torch.nan), **SMALL),
    "data: expected a tensor or array [n, d]": lambda: saeforest.train([1.0], **SMALL),  # pyright: ignore[reportArgumentType]
    "data = 'nowhere': no folder of activations": lambda: saeforest.train("nowhere", **SMALL),
    "steps = 2.5: expected a whole number": lambda: saeforest.train(X, steps=2.5),  # pyright: ignore[reportArgumentType]
    "batch_size = 0: expected": lambda: saeforest.train(X, batch_size=0),
    "seed = -1: expected": lambda: saeforest.train(X, seed=-1),
    "steps = 3 and epochs = 2: give one": lambda: saeforest.train(X, steps=3, epochs=2),
    "lr = -1.0: expected more than 0": lambda: saeforest.train(X, **SMALL, lr=-1),
    "lr = 'fast': expected a number": lambda: saeforest.train(X, **SMALL, lr="fast"),  # pyright: ignore[reportArgumentType]
    "device 'gpu': expected": lambda: saeforest.train(X, **SMALL, device="gpu"),
    "lr: data is a TrainConfig": lambda: saeforest.train(TrainConfig(), lr=1e-3),
    "layer_sizes: data is a TrainConfig": lambda: saeforest.train(TrainConfig(), layer_sizes=3),
    "that configuration is of a run on a tensor": lambda: saeforest.train(TrainConfig(data="<tensor>")),
    "epochs = 2: a source of blocks does not say": lambda: saeforest.train(
        saeforest.synthetic("matryoshka"), epochs=2
    ),
}


@pytest.mark.parametrize("line", TRAIN_MISTAKES)
def test_a_mistake_in_training_is_one_line(line: str) -> None:
    assert line in error(TRAIN_MISTAKES[line])
