"""Training: repeatable, resumable bit for bit, honest in its logs, and it learns."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edits import edit_json
from llama_cases import EOS, MakeConfig, save_llama
from saeforest import InputError
from saeforest.activations import ActivationStream, harvest_folder
from saeforest.activations.sources import MemoryActivations
from saeforest.config import OptimConfig, TrainConfig, load_config
from saeforest.run_folder import RunFolder
from saeforest.saes import (
    AllocationConfig,
    RunLength,
    TreeAuxConfig,
    TreeConfig,
    build,
    load_sae,
    start_training,
)
from saeforest.session import about_activations, open_reader, read_tokens
from saeforest.training import run_training, train
from saeforest.training.log import read_log
from saeforest.training.settle import settle_machine, settle_positions, settle_store
from training_cases import (
    FINISHED,
    STEPS,
    allocations,
    assert_same_run,
    weights,
)

# A finished run


def test_a_finished_run_holds_the_fixed_names_alone(finished_run: Path) -> None:
    assert {p.name for p in finished_run.iterdir()} == FINISHED
    assert {p.name for p in (finished_run / "sae").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_the_decoder_is_of_unit_norm(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """Also where the very last step still has a large rate."""
    run_training(tiny_config(tokens=1024, optim={"decay": "none", "lr": 0.05}), tmp_path / "run")
    norms = weights(tmp_path / "run")["W_dec"].double().norm(dim=1)
    assert float((norms - 1).abs().max()) < 1e-6


def test_the_config_of_a_run_repeats_it(finished_run: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = load_config(finished_run / "config.yaml")
    assert (config.activations.max_norm or 0) > 0
    assert config == tiny_config(text={"bos": "no"}, activations={"max_norm": config.activations.max_norm})
    run_training(config, tmp_path / "again")
    assert_same_run(finished_run, tmp_path / "again")


@pytest.mark.parametrize("store", ["disk", "live"])
def test_two_runs_with_one_seed_are_identical(
    store: str, tiny_config: MakeConfig, tmp_path: Path, small_blocks: None, whole_runs: dict[str, Path]
) -> None:
    run_training(tiny_config(activations={"store": store}), tmp_path / "run").drop_activations()
    assert_same_run(whole_runs[store], tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == FINISHED


def test_another_seed_is_another_run(finished_run: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    run_training(tiny_config(seed=1), tmp_path / "other")
    ours, theirs = weights(finished_run), weights(tmp_path / "other")
    for name in ("W_enc", "W_dec", "b_dec", "parent"):
        assert not torch.equal(ours[name], theirs[name]), name


def test_metadata_says_where_the_sae_comes_from(finished_run: Path, tiny_config: MakeConfig) -> None:
    config = tiny_config()
    metadata = load_sae(finished_run).metadata
    assert metadata["model_name"] == config.model
    assert metadata["hook_name"] == config.site
    assert metadata["context_size"] == 32
    assert metadata["dataset"] == config.data
    assert metadata["tokens"] == STEPS * 128
    assert metadata["seed"] == 0


def test_dataset_scale_becomes_the_number_that_was_used(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(tokens=1024, epochs=1, sae={"normalize_activations": "dataset_scale"})
    run = run_training(config, tmp_path / "run")
    scale = load_config(tmp_path / "run" / "config.yaml").sae.normalize_activations
    assert isinstance(scale, float)
    assert load_sae(tmp_path / "run").config.normalize_activations == "none"  # folded into the weights
    assert isinstance(run.blocks, MemoryActivations)
    norms = run.blocks.x.float().norm(dim=1)
    assert float(norms.mean()) * scale == pytest.approx(math.sqrt(16), rel=1e-5)


# The log


def test_a_logged_step_says_all_there_is_to_say(finished_run: Path) -> None:
    steps = [line for line in read_log(finished_run) if "event" not in line]
    assert [line["step"] for line in steps] == [1, 10, 20, 30, 40, 46]
    for line in steps:
        assert set(line) == {
            "step", "tokens", "lr", "loss", "reconstruction", "auxiliary", "fve", "l0", "dead",
            "tokens_per_s", "seconds", "peak_memory_mb",
        }  # fmt: skip
        assert line["tokens"] == 128 * line["step"]
        assert set(line["seconds"]) == {"lm", "data", "sae"}
        assert min(line["seconds"].values()) >= 0
        assert line["tokens_per_s"] > 0
        assert line["peak_memory_mb"] > 50
        assert [len(line[key]) for key in ("reconstruction", "auxiliary", "l0", "dead")] == [3, 3, 3, 3]
        assert all(0 < l0 <= k for l0, k in zip(line["l0"], (3, 2, 2), strict=True))
        assert all(0 <= dead <= size for dead, size in zip(line["dead"], (8, 40, 64), strict=True))
        assert line["fve"] < 1
        total = sum(line["reconstruction"]) + sum(line["auxiliary"]) / 32
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    rates = [line["lr"] for line in steps]
    assert rates[0] == pytest.approx(3e-3 / (0.1 * STEPS))
    assert rates[1] == 3e-3
    assert rates[-1] == 0


def test_a_live_run_says_what_the_language_model_took(tiny_config: MakeConfig, tmp_path: Path) -> None:
    start = time.perf_counter()
    run_training(tiny_config(tokens=1024, activations={"store": "live"}), tmp_path / "run")
    elapsed = time.perf_counter() - start
    seconds = [line["seconds"] for line in read_log(tmp_path / "run") if "event" not in line]
    assert sum(s["lm"] for s in seconds) > 0
    assert sum(sum(s.values()) for s in seconds) < elapsed


def test_a_batch_without_variance_does_not_break_the_log(tmp_path: Path) -> None:
    """One activation has no variance to explain; JSON has no word for what 1 - 1/0 is."""
    config = synthetic_config(batch_size=1, lr=1e-3)
    training = start_training(config.sae, 16, RunLength(2, 1), optim=config.optim)
    memory = MemoryActivations(torch.randn(4, 16), torch.arange(4), 0)
    train(config, {"tree": training}, ActivationStream(memory, 1), begun(tmp_path, config))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_the_moves_lead_from_the_first_parents_to_the_last(
    finished_run: Path, tiny_config: MakeConfig
) -> None:
    parent = build(tiny_config().sae, 16, seed=0).parent.tolist()
    events = allocations(finished_run)
    assert {e["event"] for e in events} == {"reallocation", "root_reset"}
    for event in events:
        assert event["moves"]
        for feature, old, new in event["moves"]:
            assert parent[feature] == old != new
            parent[feature] = new
    assert parent == weights(finished_run)["parent"].tolist()
    logged = [line for line in read_log(finished_run) if "moved" in line]
    assert sum(line["moved"] for line in logged) == sum(len(e["moves"]) for e in events)
    assert {(e["step"], e["layer"]) for e in events} == {
        (e["step"], e["layer"]) for e in logged if e["moved"]
    }


# Learning


def begun(folder: Path, config: TrainConfig) -> RunFolder:
    """A run that has its configuration and nothing else."""
    run = RunFolder(folder)
    run.save_config(config)
    return run


def synthetic_config(batch_size: int, lr: float) -> TrainConfig:
    return TrainConfig(
        log_every=50,
        sae=TreeConfig(
            layer_sizes=(8, 36),
            k_per_layer=(1, 1),
            normalize_activations="none",
            aux=TreeAuxConfig(layers=(0, 1), k=8, detach=True, bias=False, rescale=True),
            allocation=AllocationConfig(
                first=30, cap=60, dead_after_tokens=4000, eligible_within_tokens=50_000, root_reset_at=0.7
            ),
        ),
        optim=OptimConfig(lr=lr, batch_size=batch_size, warmup=0.02, decay="linear", precision="float32"),
    )


def tree_data(n: int, d: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """6 parents with 3 children each, orthonormal directions; on a row one parent, and often a child of it."""
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:24]
    parent = torch.randint(6, (n,), generator=generator)
    child = 6 + 3 * parent + torch.randint(3, (n,), generator=generator)
    size = 1 + 0.3 * torch.rand(n, 2, generator=generator)
    size[:, 1] *= torch.rand(n, generator=generator) < 0.6
    x = 3 * size[:, :1] * directions[parent] + 2 * size[:, 1:] * directions[child]
    x += 0.02 * torch.randn(n, d, generator=generator)
    # b_dec takes the mean of the parents, so what is left to a parent's feature is what sets it apart.
    directions[:6] -= directions[:6].mean(0)
    return x, torch.nn.functional.normalize(directions)


def test_training_recovers_the_directions_of_a_synthetic_tree(tmp_path: Path) -> None:
    """A broken gradient, a wrong sign, or a frozen decoder misses these numbers by far."""
    d, n_steps = 24, 500
    x, directions = tree_data(20_000, d, torch.Generator().manual_seed(0))
    config = synthetic_config(batch_size=256, lr=3e-3)
    training = start_training(config.sae, d, RunLength(n_steps, 256), optim=config.optim)
    sae = training.sae

    def recovered() -> torch.Tensor:
        return (sae.W_dec.detach() @ directions.T).amax(0) > 0.9

    assert recovered().sum() == 0
    train(
        config,
        {"tree": training},
        ActivationStream(MemoryActivations(x, torch.arange(len(x)), 0), 256),
        begun(tmp_path, config),
    )
    steps = [line for line in read_log(tmp_path) if "event" not in line]
    assert steps[0]["fve"] < 0.3
    assert steps[-1]["fve"] > 0.98
    assert steps[-1]["loss"] < 0.2 * steps[0]["loss"]
    assert recovered()[:6].sum() >= 5, "parents"
    assert recovered()[6:].sum() >= 15, "children"
    # Below a parent's feature hang features of its own children, far more often than the 1 in 9 of the first forest.
    alike = sae.W_dec.detach() @ directions.T > 0.9
    under = [
        bool((alike[:, c] & alike[:, (c - 6) // 3][sae.parent] & (sae.parent >= 0)).any())
        for c in range(6, 24)
    ]
    assert sum(under) >= 8


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    config = synthetic_config(batch_size=8, lr=1e-3)
    training = start_training(config.sae, 16, RunLength(5, 8), optim=config.optim)
    x = torch.full((16, 16), 1e30)
    stream, run = ActivationStream(MemoryActivations(x, torch.arange(16), 0), 8), begun(tmp_path, config)
    with pytest.raises(InputError, match=r"step 1: the loss is (nan|inf); lower optim\.lr = 0\.001"):
        train(config, {"tree": training}, stream, run)
    assert not (tmp_path / "sae").exists()


# Where a run may land


def test_a_folder_in_use_is_left_alone(tiny_config: MakeConfig, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", finished_run):
        with pytest.raises(InputError, match=r"exists and is not empty|is a file"):
            run_training(tiny_config(seed=1), out)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_will_do(tiny_config: MakeConfig, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "run").mkdir()
    run_training(tiny_config(), tmp_path / "run")
    assert_same_run(finished_run, tmp_path / "run")


FAILED_STARTS: dict[str, dict[str, Any]] = {
    "unknown model": {"model": "/nowhere/at/all"},
    "unknown site": {"site": "blocks.7.hook_resid_post"},
    "missing text": {"data": "/nowhere/text.txt"},
    "too few tokens": {"tokens": 100, "epochs": 1},
    "too few activations": {"tokens": 128, "epochs": 1},
    "too few activations on disk": {"tokens": 128, "epochs": 1, "activations": {"store": "disk"}},
}


@pytest.mark.parametrize("exists", [False, True], ids=["new folder", "empty folder"])
@pytest.mark.parametrize("why", FAILED_STARTS)
def test_a_failed_start_leaves_nothing_behind(
    why: str, exists: bool, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    with pytest.raises(InputError) as error:
        run_training(tiny_config(**FAILED_STARTS[why]), out)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.rglob("*")] == (["run"] if exists else [])


def test_ctrl_c_while_harvesting_leaves_nothing_behind(tiny_config: MakeConfig, tmp_path: Path) -> None:
    from saeforest.activations import ActivationReader

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationReader, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(tiny_config(activations={"store": "disk"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# Harvested activations


@pytest.fixture(scope="module")
def harvested(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, folder = tiny_config(), tmp_path_factory.mktemp("harvest") / "store"
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", config.tokens)
    config = settle_positions(config, reader, tokens)
    harvest_folder(reader, tokens, folder, about_activations(config, tokens, reader))
    return folder


def test_harvested_activations_train_like_a_store_on_disk(
    harvested: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run_training(tiny_config(activations={"store": "disk"}), tmp_path / "disk")
    before = {p.name: p.read_bytes() for p in harvested.iterdir()}
    # Another share held out, say: the SAE would be measured on text that it was trained on.
    else_where = {"text": {"context": 16, "held_out": 0.5}, "activations": {"exclude_first": False}}
    run = run_training(tiny_config(data=str(harvested), **else_where), tmp_path / "run")
    ours, theirs = (
        load_config(tmp_path / "run" / "config.yaml"),
        load_config(tmp_path / "disk" / "config.yaml"),
    )
    assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
    assert ours.activations.exclude_first
    assert ours.activations.max_norm == theirs.activations.max_norm
    for name, tensor in weights(tmp_path / "disk").items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor), name
    assert {p.name: p.read_bytes() for p in harvested.iterdir()} == before
    assert run.tokens.ids[0, 0] != EOS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "OTHER"}, "set model to "),
        ({"site": "blocks.0.hook_resid_post"}, "set site to blocks.1.hook_resid_post"),
    ],
    ids=str,
)
def test_harvested_activations_of_something_else_are_refused(
    changes: dict[str, Any],
    says: str,
    harvested: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
) -> None:
    if "model" in changes:  # one of the same shape
        other = save_llama(tmp_path / "other", damage=lambda model: model.lm_head.weight.data.mul_(1.5))
        changes = {"model": str(other)}
    with pytest.raises(InputError) as error:
        run_training(tiny_config(data=str(harvested), **changes), tmp_path / "run")
    assert says in str(error.value)
    assert str(harvested) in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model", "site", "data", "context", "held_out", "max_norm"])
def test_a_store_that_does_not_say_what_it_is_of_is_refused(
    key: str, harvested: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(harvested, folder)
    edit_json(folder / "activations.json", lambda manifest: manifest.pop(key))
    with pytest.raises(InputError, match=f"activations.json.*{key}"):
        run_training(tiny_config(data=str(folder)), tmp_path / "run")


# Stores


def test_auto_keeps_what_fits_in_memory(tiny_config: MakeConfig) -> None:
    one, two = (
        tiny_config(epochs=1, activations={"store": "auto"}),
        tiny_config(activations={"store": "auto"}),
    )
    assert settle_store(one, 10_000, 64, 2).activations.store == "memory"
    assert settle_store(one, 10**12, 4096, 2).activations.store == "live"
    assert settle_store(two, 10**12, 4096, 2).activations.store == "disk"
    assert settle_store(tiny_config(activations={"store": "live"}), 10, 64, 2).activations.store == "live"


@pytest.fixture(autouse=True)
def _signals_are_given_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("allocation", "said"),
    [
        (AllocationConfig(root_reset_at=0.0), True),
        (AllocationConfig(root_reset_at=0.0, until=0.5), False),
        (AllocationConfig(root_reset_at=0.0, first=0), False),
        (AllocationConfig(root_reset_at=0.0, rule="data"), False),
        (AllocationConfig(), False),
    ],
)
def test_who_only_wants_no_root_reset_hears_that_reallocation_ends_too(
    allocation: AllocationConfig, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = TreeConfig(layer_sizes=(4, 8), k_per_layer=(2, 1), allocation=allocation)
    settle_machine(TrainConfig(sae=tree))
    assert ("tree: sae.allocation.root_reset_at = 0 without until" in capsys.readouterr().err) == said
