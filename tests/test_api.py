"""The public functions: what `dir(saeforest)` lists, what each does, and the one line that each mistake is."""

from __future__ import annotations

import doctest
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saeforest
from llama_cases import MakeConfig
from saeforest import Forest, InputError, Record, RunFolder, SparseCode, TrainedRun
from saeforest.config import TrainConfig
from saeforest.evaluation import SETS
from saeforest.infer import InferConfig
from saeforest.infer import infer_forest as inferred
from saeforest.saes import TopKConfig, TreeConfig, TreeSAE
from saeforest.stopping import Interrupted
from saeforest.training.log import read_log
from saeforest.worlds import recover
from training_cases import TIMES, at_step, ctrl_c

SOURCE = Path(saeforest.__file__).parents[1]
D, N = 8, 1_000
SMALL: dict[str, Any] = {"layer_sizes": (4, 12), "k_per_layer": (2, 1), "steps": 6, "log_every": 2}


def activations(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    return saeforest.train(activations(), **SMALL)


@pytest.fixture(scope="module")
def flat() -> TrainedRun:
    return saeforest.train(activations(), "topk", layer_sizes=16, k_per_layer=3, steps=6)


def error(do: Callable[[], object]) -> str:
    """The one line of an InputError."""
    with pytest.raises(InputError) as info:
        do()
    message = str(info.value)
    assert "\n" not in message
    assert "--" not in message
    assert "Traceback" not in message
    return message


# -- what is public


def test_dir_is_what_is_public() -> None:
    assert sorted(dir(saeforest)) == sorted(
        [
            "SAE",
            "Forest",
            "InputError",
            "Record",
            "RunFolder",
            "SparseCode",
            "TrainedRun",
            "__version__",
            "compare",
            "infer_forest",
            "load",
            "load_lm",
            "measure",
            "save",
            "synthetic",
            "train",
        ]
    )
    for name in dir(saeforest):
        assert getattr(saeforest, name) is not None
        assert name.startswith("__") or inspect.getdoc(getattr(saeforest, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = saeforest.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_it_is_typed() -> None:
    assert (SOURCE / "saeforest" / "py.typed").is_file()


def test_an_input_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="layer_sizes"):
        TreeConfig(layer_sizes=(0,), k_per_layer=(1,))


def in_a_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_costs_nothing_but_what_is_asked_for() -> None:
    imported = in_a_process("import saeforest, sys; print(*(m.split('.')[0] for m in sys.modules))").split()
    assert set(imported).isdisjoint({"torch", "numpy", "pydantic", "transformers", "scipy", "rich"})


def test_training_on_a_tensor_needs_the_core_alone(tmp_path: Path) -> None:
    heavy = in_a_process(
        f"""
import sys, torch, saeforest
x = torch.randn(400, 8)
run = saeforest.train(x, "tree", layer_sizes=(4, 8), k_per_layer=(2, 1), steps=3)
saeforest.save(run.sae, {str(tmp_path / "sae")!r})
sae = saeforest.load({str(tmp_path / "sae")!r})
assert len(sae.encode(x)) == 400
saeforest.infer_forest(sae, x)
print(*(m for m in sys.modules if "." not in m))
"""
    ).split()
    # scipy is not here: numba brings it where it is installed.
    assert set(heavy).isdisjoint({"transformers", "tokenizers", "gguf", "sklearn", "matplotlib", "datasets"})


# -- train


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


# -- measure


def test_reconstruction_on_a_tensor_is_that_of_numpy(run: TrainedRun) -> None:
    x = activations(700, seed=1)
    record = saeforest.measure(run, x)["reconstruction"]
    with torch.no_grad():
        residual = (x - run.sae(x)).double().numpy()
    centered = x.double().numpy() - x.double().numpy().mean(0)
    assert record.value["fve"] == pytest.approx(1 - (residual**2).sum() / (centered**2).sum(), abs=1e-6)
    assert record.tokens == 700
    interval, value = record.interval["fve"], record.value["fve"]
    assert interval is not None
    assert value is not None
    assert interval[0] < value < interval[1]


def test_a_named_set_leaves_out_what_activations_alone_cannot_give(run: TrainedRun) -> None:
    found = saeforest.measure(run, activations(), "paper")
    assert "reconstruction" in found
    assert found.keys() < set(SETS["paper"])
    assert "measure 'cross_entropy': needs" in error(
        lambda: saeforest.measure(run, activations(), ["paper", "cross_entropy"])
    )


def test_measures_by_default_are_those_that_need_no_text(run: TrainedRun, flat: TrainedRun) -> None:
    x = activations(seed=1)
    assert list(saeforest.measure(run.sae, x)) == [
        "reconstruction",
        "sparsity",
        "dead",
        "coverage",
        "cooccurrence",
    ]
    assert list(saeforest.measure(flat, x)) == ["reconstruction", "sparsity", "dead"]
    forest = saeforest.infer_forest(flat.sae, x, min_count=1)
    records = saeforest.measure(flat, x, ["coverage", "hierarchy", "mcs"], forest=forest)
    assert list(records) == ["coverage", "hierarchy", "mcs"]
    assert records["coverage"].settings["forest"] == "given"
    every = saeforest.measure(
        run, x, "hierarchy,mcs,composition,geometry,reconstruction_score,hsae,cooccurrence"
    )
    assert all(isinstance(record, Record) for record in every.values())
    assert len(every) == 7


def test_a_run_is_measured_on_its_text(copy_run: Path) -> None:
    records = saeforest.measure(copy_run, measures="reconstruction,sparsity")
    assert list(records) == ["reconstruction", "sparsity"]
    assert records["reconstruction"].settings["split"] == "held_out"
    assert (copy_run / "eval" / "reconstruction.json").is_file()
    on_tensor = saeforest.measure(
        RunFolder(copy_run), torch.randn(64, saeforest.load(copy_run).d_in), "sparsity"
    )
    assert on_tensor["sparsity"].tokens == 64


@pytest.fixture
def copy_run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_mistake_in_measuring_is_one_line(run: TrainedRun, flat: TrainedRun) -> None:
    x: Any = activations()
    mistakes: dict[str, Callable[[], object]] = {
        "x: an SAE alone has no text": lambda: saeforest.measure(run.sae),
        "x: a run in memory has no text": lambda: saeforest.measure(run),
        "x: has shape [1000, 3]: expected activations [n, 8]": lambda: saeforest.measure(run, x[:, :3]),
        "measure 'cross_entropy': needs losses": lambda: saeforest.measure(run, x, "cross_entropy"),
        "measure 'autointerp': needs judge and text": lambda: saeforest.measure(run, x, ["autointerp"]),
        "measure 'absorption': needs first letters": lambda: saeforest.measure(run, x, ["absorption"]),
        "measure 'nope': no such measure": lambda: saeforest.measure(run, x, "nope"),
        "measure 'fve': no such measure; fve is a value of reconstruction; expected": lambda: (
            saeforest.measure(run, x, ["fve"])
        ),
        "measures: expected names of measures": lambda: saeforest.measure(run, x, 3),  # pyright: ignore[reportArgumentType]
        "measure 'coverage': needs a forest, and an SAE of architecture topk learns none": lambda: (
            saeforest.measure(flat, x, "coverage")
        ),
        "forest: expected a saeforest.Forest": lambda: saeforest.measure(flat, x, forest=3),  # pyright: ignore[reportArgumentType]
        "forest: is of 2 features, but the SAE has 16": lambda: saeforest.measure(
            flat, x, forest=Forest(torch.tensor([-1, 0]), (1, 1))
        ),
        "sae = 'b': expected one of tree": lambda: saeforest.measure(run, x, sae="b"),
        "options: expected": lambda: saeforest.measure(run, x, options=3),  # pyright: ignore[reportArgumentType]
        "source: expected an SAE, a run": lambda: saeforest.measure(3, x),  # pyright: ignore[reportArgumentType]
    }
    for line, do in mistakes.items():
        assert line in error(do)


# -- the others


def test_a_forest_is_inferred_as_the_library_does(flat: TrainedRun) -> None:
    x = activations(seed=2)
    forest = saeforest.infer_forest(flat.sae, x, method="coverage", min_score=0.3, min_count=5)
    config = InferConfig(method="coverage", min_score=0.3, min_count=5)
    assert torch.equal(forest.parent, inferred(flat.sae, [x], config).forest.parent)
    assert len(forest.edges[0]) > 0
    defaults = inspect.signature(saeforest.infer_forest).parameters
    assert {f.name: defaults[f.name].default for f in fields(InferConfig)} == {
        f.name: f.default for f in fields(InferConfig)
    }
    said = error(lambda: saeforest.infer_forest(flat.sae, x, min_count=0))
    assert said == "min_count = 0: expected 1 or more"
    assert "x: has shape [1000, 2]" in error(lambda: saeforest.infer_forest(flat.sae, x[:, :2]))
    assert "sae: expected an SAE" in error(lambda: saeforest.infer_forest(flat, x))  # pyright: ignore[reportArgumentType]


def test_saving(run: TrainedRun, flat: TrainedRun, tmp_path: Path) -> None:
    place = tmp_path / "sae"
    saeforest.save(run.sae, place)
    saeforest.save(flat.sae, str(place))
    assert torch.equal(saeforest.load(place).decoder, flat.sae.decoder)
    (tmp_path / "note.txt").write_text("mine")
    assert "not empty and holds no SAE" in error(lambda: saeforest.save(run.sae, tmp_path))
    assert "is a file" in error(lambda: saeforest.save(run.sae, tmp_path / "note.txt"))
    assert "sae: expected an SAE" in error(lambda: saeforest.save(run, place))  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_synthetic_worlds() -> None:
    world = saeforest.synthetic("tree", seed=3, depth=2, branching=2, roots=3)
    assert world.forest.layer_sizes == (3, 6)
    assert torch.equal(
        world.held_out(5).x, saeforest.synthetic(seed=3, depth=2, branching=2, roots=3).held_out(5).x
    )
    assert "did you mean tree" in error(lambda: saeforest.synthetic("tre"))
    assert "dept: no setting of generator tree; did you mean depth?" in error(
        lambda: saeforest.synthetic("tree", dept=2)
    )
    said = error(lambda: saeforest.synthetic("matryoshka", balanced=True))
    assert said == "balanced: no setting of generator matryoshka; it has none"


def test_comparing(
    run: TrainedRun, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr("saeforest.report.write.compare", lambda runs, out: asked.append((list(runs), out)))
    page = saeforest.compare([RunFolder(finished_run), str(finished_run)], tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert asked == [([finished_run, finished_run], tmp_path / "report")]
    saeforest.compare(finished_run, tmp_path / "one")
    assert asked[1] == ([finished_run], tmp_path / "one")
    assert "a run in memory has no records" in error(lambda: saeforest.compare(run, tmp_path / "report"))


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, finished_run: Path, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "saeforest.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = error(lambda: saeforest.compare(finished_run, tmp_path / "report"))
    assert said == "a report needs the package matplotlib: run `pip install 'saeforest[report]'`"


# -- what users see of the types


def test_reprs_are_short_and_tell_sizes(run: TrainedRun, tmp_path: Path, finished_run: Path) -> None:
    assert repr(run.sae) == (
        "TreeSAE(d_in=8, d_sae=16, layer_sizes=(4, 12), k_per_layer=(2, 1), tokens=1_536, device='cpu')"
    )
    assert repr(run).startswith("TrainedRun(in memory; 6 steps of 256; last batch: FVE ")
    assert repr(run.sae) in repr(run)
    assert repr(Forest(torch.tensor([-1, -1, 0, 0]), (2, 2))) == (
        "Forest(4 features, layer_sizes=(2, 2): 2 edges, 2 roots, 2 levels)"
    )
    assert (
        repr(run.sae.encode(activations(5)))
        == "SparseCode(shape=[5], slots=3, dtype=torch.float32, device='cpu')"
    )
    record = saeforest.measure(run, activations(), "sparsity")["sparsity"]
    assert repr(record).startswith("Record(sparsity, 1,000 activations)\n  l0 = ")
    undefined = replace(record, value={"a": None}, interval={"a": None}, detail={"null": {"a": "no reason"}})
    assert repr(undefined) == "Record(sparsity, 1,000 activations)\n  a = undefined: no reason"
    assert repr(RunFolder(tmp_path)) == f"RunFolder('{tmp_path}': no run)"
    shown = repr(RunFolder(finished_run))
    assert shown.startswith(f"RunFolder('{finished_run}': tree of ")
    assert "site blocks." in shown
    assert "model=" in repr(saeforest.load(finished_run))
    assert "site='blocks." in repr(saeforest.load(finished_run))


def test_an_sae_says_what_it_cannot_encode_or_decode(run: TrainedRun) -> None:
    sae: Any = run.sae
    code = sae.encode(activations(4))
    assert "this SAE reads width 8" in error(lambda: sae.encode(torch.zeros(4, 3)))
    assert "this SAE reads width 8" in error(lambda: sae(torch.zeros(4, 3)))
    assert "code, stats = sae.encode_with_stats(x)" in error(lambda: sae.decode(code))
    _, stats = sae.encode_with_stats(activations(4))
    assert "layer = 2: expected 0 to 1" in error(lambda: sae.decode(code, stats, 2))
    wrong = SparseCode(torch.ones(4, 1), torch.full((4, 1), 16))
    assert "feature id 16: expected 0 to 15" in error(lambda: sae.decode(wrong, stats))
    plain = saeforest.train(
        activations(), "topk", layer_sizes=16, k_per_layer=3, steps=2, normalize_activations="none"
    )
    x = activations(4)
    assert torch.equal(plain.sae.decode(plain.sae.encode(x)), plain.sae(x))


@pytest.mark.parametrize(
    "module",
    [
        "api.train",
        "api.measure",
        "api.others",
        "sparse_code",
        "structure.forest",
        "saes.tree",
        "saes.hsae",
        "saes.topk",
        "saes.batch_topk",
        "saes.matryoshka",
        "saes.jumprelu",
        "saes.matching_pursuit",
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    found = doctest.testmod(import_module(f"saeforest.{module}"))
    assert found.failed == 0
    assert found.attempted > 0 or module == "structure.forest"
