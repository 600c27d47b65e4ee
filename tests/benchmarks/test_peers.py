"""The peer benchmark: its plan, its counts, its files, and a worker of our own library; no peer is needed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.peers import __main__ as command  # noqa: E402
from benchmarks.peers import data, environments, plan, report, session  # noqa: E402
from benchmarks.peers.case import Case  # noqa: E402
from benchmarks.peers.costs import counted, expected_children, flops_per_bdf, least_seconds, memory  # noqa: E402
from benchmarks.peers.environments import EnvironmentFailure, Recipe, python_of  # noqa: E402
from benchmarks.peers.machine import Machine  # noqa: E402
from benchmarks.peers.session import KEYS, Measured, Worker, WorkerFailure, measure  # noqa: E402
from benchmarks.peers.watch import Watch  # noqa: E402
from benchmarks.peers.whole import reached  # noqa: E402

TOPK = Case(
    "saeforest",
    "topk",
    "training_step",
    "cpu",
    "float32",
    16,
    256,
    32,
    64,
    layer_sizes=(256,),
    k_per_layer=(32,),
)
MACHINE = Machine("cpu", "a processor", 1, {"float32": 2e9, "bfloat16": 4e9}, 1e9)


def result(library: str, seconds: list[float], **changes: object) -> Measured:
    return Measured(replace(TOPK, library=library, **changes), "1.0", seconds, 100.0)  # pyright: ignore[reportArgumentType]


# -- the plan


def test_the_tree_has_the_papers_shape_at_its_width() -> None:
    assert plan.tree_shape(24_576) == ((1536, 3072, 9216, 10_752), (21, 5, 4, 2))


@pytest.mark.parametrize("width", [6_144, 98_304, 393_216, 1_048_576, 1000])
def test_trees_of_other_widths_grow_at_the_bottom(width: int) -> None:
    sizes, k = plan.tree_shape(width)
    assert sum(sizes) == width
    assert sum(k) == plan.K
    assert sizes[0] == pytest.approx(1536 * (width / 24_576) ** 0.5, abs=1)
    assert sizes[2] / sizes[1] == pytest.approx(3, rel=0.02)
    assert sizes[3] / sizes[1] == pytest.approx(3.5, rel=0.02)


def test_the_quick_plan_is_one_group_of_training_steps() -> None:
    (group,) = plan.planned("cpu", quick=True)
    assert len({case.group for case in group}) == 1
    assert str(group[0].group) == "training_step on cpu, d 576, width 24,576, k 32, batch 4,096"
    assert {(case.library, case.system) for case in group} == {
        ("saeforest", "topk"),
        ("saeforest", "tree"),
        ("sae-lens", "topk"),
        ("eai-sparsify", "topk"),
        ("dictionary-learning", "topk"),
    }
    assert {case.dtype for case in group if case.library in ("saeforest", "eai-sparsify")} == {
        "float32",
        "bfloat16",
    }


def test_a_processor_without_bfloat16_runs_float32_alone() -> None:
    cases = [case for group in plan.planned("cpu", native_bf16=False) for case in group]
    assert {case.dtype for case in cases} == {"float32"}
    assert any(case.system == "matryoshka" and case.library == "saeforest" for case in cases)


def test_the_whole_plan_covers_all_sizes_and_the_gpu_has_more() -> None:
    cpu = [group[0].group for group in plan.planned("cpu")]
    assert len(cpu) == len(set(cpu)) == len(plan.WIDTHS) * len(plan.DS) * len(plan.TASKS)
    extra = {group[0].group for group in plan.planned("cuda")} - {g._replace(device="cuda") for g in cpu}
    assert {(g.d, g.batch, g.width) for g in extra} == {(768, 8192, 24_576), (768, 8192, 98_304)}


def test_a_plan_can_be_restricted() -> None:
    (group,) = plan.planned(
        "cpu", widths=[512], ds=[32], tasks=["encode"], libraries=["overcomplete"], batch=8
    )
    assert [(c.library, c.system, c.task, c.width, c.d, c.batch) for c in group] == [
        ("overcomplete", "topk", "encode", 512, 32, 8)
    ]


def test_cases_that_do_not_fit_together_run_in_parts() -> None:
    a, b, c, d = (replace(TOPK, width=width) for width in (1, 2, 3, 4))
    assert plan.fitting([a, b, c, d], [6, 5, 11, 4], 10) == ([[a, d], [b]], [c])


# -- counted costs


def test_expected_children_of_a_fresh_forest() -> None:
    # 4 features under layer 0 (3 features and the root), 1 of which is active beside the root: half of them; then 8
    # under 7 features and the root, with 1 + 2 active ones and the root.
    assert expected_children((3, 4, 8), (1, 2, 1)) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("library", "system", "task", "expected"),
    [
        ("sae-lens", "topk", "training_step", 12),
        ("sae-lens", "matryoshka", "training_step", 15),  # half of the dictionary is in a shorter prefix
        ("dictionary-learning", "topk", "training_step", 12),
        ("dictionary-learning", "matryoshka", "training_step", 12),
        ("overcomplete", "topk", "training_step", 10),
        ("eai-sparsify", "topk", "training_step", 2 + 10 * 32 / 256),
        ("saeforest", "topk", "training_step", 2 + 10 * 32 / 256),
        ("saeforest", "topk", "encode", 2 + 2 * 32 / 256),
        ("sae-lens", "topk", "encode", 2),
        ("eai-sparsify", "topk", "encode", 2),
    ],
)
def test_flops_as_multiples_of_batch_d_width(library: str, system: str, task: str, expected: float) -> None:
    sizes = (64, 64, 128) if system == "matryoshka" else (256,)
    case = replace(TOPK, library=library, system=system, task=task, layer_sizes=sizes)
    assert flops_per_bdf(case) == pytest.approx(expected)


def test_a_tree_meets_layer_0_and_the_children_of_the_active() -> None:
    tree = replace(TOPK, system="tree", width=15, k=4, layer_sizes=(3, 4, 8), k_per_layer=(1, 2, 1))
    macs = 64 * 16 * (3 + 2 + 4)
    assert counted(tree).flops == 2 * (macs + 5 * 64 * 16 * 4)
    assert counted(replace(tree, task="encode")).flops == 2 * (macs + 64 * 16 * 4)


def test_bytes_are_those_of_adam_or_of_the_encoder() -> None:
    assert counted(TOPK).bytes == 2 * 7 * 4 * 16 * 256
    encode = replace(TOPK, task="encode")
    assert counted(encode).bytes == 4 * 16 * 256
    assert counted(replace(encode, dtype="bfloat16")).bytes == 2 * 16 * 256


def test_the_limit_is_whichever_takes_longer() -> None:
    cost = counted(TOPK)
    assert least_seconds(TOPK, cost.flops, cost.bytes / 3) == pytest.approx(3)
    assert least_seconds(TOPK, cost.flops / 2, cost.bytes) == pytest.approx(2)


def test_dense_peers_need_memory_for_matrices_of_batch_by_width() -> None:
    wide = replace(TOPK, width=1 << 20, layer_sizes=(1 << 20,), batch=4096)
    assert memory(replace(wide, library="sae-lens")) > 7 * 4 * 4096 * (1 << 20) > 10 * memory(wide)


# -- rows, the table, the plot


def test_a_row_has_the_agreed_keys_and_figures() -> None:
    row = result("saeforest", [1.0, 2.0, 3.0, 4.0, 5.0]).row()
    assert tuple(row) == KEYS
    assert row["tokens_per_s"] == pytest.approx(64 / 3, abs=0.1)
    assert row["spread"] == pytest.approx((4 - 2) / 3, abs=1e-3)
    assert row["peak_mb"] == 100
    assert row["version"] == "1.0"


def test_the_table_compares_with_the_fastest_peer_of_the_group() -> None:
    ours, slow, fast = (
        result(name, [t, t]) for name, t in [("saeforest", 1.0), ("sae-lens", 8.0), ("eai-sparsify", 4.0)]
    )
    other = result("overcomplete", [0.5, 0.5], width=512, layer_sizes=(512,))
    lines = report.table([slow, fast, ours, other], MACHINE).splitlines()
    cells = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines if line.startswith("| ")}
    ratio = report._COLUMNS.index("× fastest peer")
    assert [cells[name][ratio] for name in ("saeforest", "eai-sparsify", "sae-lens")] == [
        "4.00",
        "1.00",
        "0.50",
    ]
    assert cells["saeforest"][report._COLUMNS.index("FLOPs / BdF")] == "3.25"
    assert sum(line.startswith("### ") for line in lines) == 2


def test_files_are_written_beside_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "peers.json"
    results = [result("saeforest", [1.0, 1.0]), result("sae-lens", [2.0, 2.0], dtype="bfloat16")]
    report.write(out, results, MACHINE, {"activations": {"16": "synthetic"}})
    assert {path.name for path in out.parent.iterdir()} == {
        "peers.json",
        "peers.md",
        "peers.png",
        "peers-machine.json",
    }
    assert [row["library"] for row in json.loads(out.read_text())] == ["saeforest", "sae-lens"]
    machine = json.loads((out.parent / "peers-machine.json").read_text())
    assert machine["matmul_gflops_per_s"] == {"float32": 2.0, "bfloat16": 4.0}
    assert machine["cases"][0]["share_of_limit"] == pytest.approx(least_seconds(TOPK, 2e9, 1e9), abs=1e-4)


# -- workers


def test_our_own_worker_trains_and_encodes_at_a_tiny_size(tmp_path: Path) -> None:
    (group,) = plan.planned(
        "cpu", widths=[256], ds=[16], batch=32, tasks=["training_step"], libraries=["saeforest"]
    )
    cases = [next(case for case in group if case.system == "tree" and case.dtype == "float32")]
    said: list[str] = []
    file = data.write(tmp_path, 16, 32, None)

    def start(case: Case) -> Worker:
        return Worker(case, python_of(case.library, "cpu"), file, threads=1)

    (done,) = measure(cases, start, 2, said.append)
    assert said == []
    assert len(done.seconds) == 2 * session.STEPS_A_TURN
    assert min(done.seconds) > 0
    assert done.peak_mb > 10
    assert done.row()["tokens_per_s"] > 0


def test_a_worker_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    bad = replace(TOPK, library="nobody")
    said: list[str] = []
    start = partial(Worker, python=Path(sys.executable), activations=tmp_path / "x.npy", threads=1)
    assert measure([bad], start, 2, said.append) == []
    why = "ModuleNotFoundError: No module named 'benchmarks.peers.drivers.run_nobody'"
    assert said == [f"nobody topk float32: left out: {why}"]


def test_a_worker_that_dies_says_its_last_words(tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho starting >&2\necho no such library >&2\nexit 3\n", encoding="utf-8")
    dying.chmod(0o755)
    with pytest.raises(WorkerFailure, match="ended with code 3: no such library"):
        Worker(TOPK, dying, tmp_path / "x.npy", 1)


def test_a_worker_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_BUILD_LIMIT", 0.2)
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    hanging.chmod(0o755)
    with pytest.raises(WorkerFailure, match=r"no answer in 0 s"):
        Worker(TOPK, hanging, tmp_path / "x.npy", 1)


def test_slow_cases_get_fewer_rounds_and_very_slow_ones_none() -> None:
    class Scripted:
        version = "1.0"

        def __init__(self, case: Case) -> None:
            self.seconds = float(case.width)

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        close = __exit__

        def steps(self, n: int, limit: float, *, forget: bool = False) -> tuple[list[float], float]:
            return [self.seconds] * n, 1.0

    cases = [replace(TOPK, width=seconds) for seconds in (0, 2, 61, 181)]
    said: list[str] = []
    done = measure(cases, Scripted, 5, said.append)  # pyright: ignore[reportArgumentType]
    assert [len(r.seconds) for r in done] == [25, 5, 2]
    assert said == ["saeforest topk float32: left out: 181 s a step, more than 180"]


# -- environments and the command


def test_an_environment_that_cannot_be_made_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path / ".venv-peers")
    monkeypatch.setattr(environments, "RECIPES", {"sae-lens": Recipe("0")})
    failing = tmp_path / "python"
    failing.write_text(
        "#!/bin/sh\necho 'WARNING: hm' >&2\necho 'ERROR: no index' >&2\nexit 1\n", encoding="utf-8"
    )
    failing.chmod(0o755)
    monkeypatch.setattr(environments.sys, "executable", str(failing))
    with pytest.raises(
        EnvironmentFailure, match=r"sae-lens: `-m venv .*` failed with code 1: ERROR: no index"
    ):
        python_of("sae-lens", "cpu")
    assert command.environments({"saeforest", "sae-lens"}, "cpu") == {"saeforest": failing}
    assert "left out: sae-lens: " in capsys.readouterr().out


def test_an_environment_with_its_stamp_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "_run", lambda *_: pytest.fail("nothing was to be made"))
    (tmp_path / "sae-lens").mkdir()
    version = environments.RECIPES["sae-lens"].version
    (tmp_path / "sae-lens" / "made.txt").write_text(f"sae-lens=={version} \n", encoding="utf-8")
    assert python_of("sae-lens", "cpu") == tmp_path / "sae-lens" / "bin" / "python"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.txt"], "--out x.txt: expected a name that ends in .json"),
        (["--out", "x.json", "--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--out", "x.json", "--widths", "24576", "9"], "--widths 9: expected 256 or more"),
        (["--out", "x.json", "--libraries", "nobody"], "invalid choice: 'nobody'"),
        (["--out", f"{__file__}/x.json"], "cannot be written"),
        (["--out", "x.json", "--activations", "nowhere"], "nowhere: no activations.json"),
    ],
)
def test_bad_options_give_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count(os.linesep) == 1


def test_synthetic_activations_repeat_and_have_the_norm_of_normalised_ones() -> None:
    x = data.synthetic(512, 16, seed=1)
    assert x.shape == (512, 16)
    assert float(x.norm(dim=1).mean()) == pytest.approx(4, rel=1e-4)
    assert bool((x == data.synthetic(512, 16, seed=1)).all())


def test_a_watch_measures_between_batches_while_clocks_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("benchmarks.peers.watch.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr("benchmarks.peers.watch.time.process_time", lambda: 0.0)
    rows, others = torch.arange(12.0).view(6, 2), torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    watch = Watch(rows, others, batch=2, looks=1, warmup=1, dead_steps=1)
    watch.begin()
    handed = []
    for batch in watch.batches():
        watch.reconstruct = [lambda x: x, lambda x: x * 0 + others.mean(0)][len(handed)]
        handed.append(batch)
        if len(handed) == 2:
            break
    watch.look(2)
    assert torch.equal(torch.cat(handed), rows[:4])
    assert [found["step"] for found in watch.found] == [1, 2]
    assert [found["fve"] for found in watch.found] == [1, 0]
    assert [found["clock_s"] for found in watch.found] == [10, 20]  # of 30 that passed


def test_a_whole_run_is_timed_to_what_another_explained_at_its_end() -> None:
    def run(library: str, *looks: tuple[float, float]) -> dict[str, object]:
        listed = [{"clock_s": 2 * s, "processor_s": s, "fve": fve} for s, fve in looks]
        return {"library": library, "system": "topk", "looks": listed}

    ours = run("saeforest", (1, 0.2), (3, 0.5), (5, 0.45), (7, 0.8))
    peers = [run("a", (10, 0.4)), run("b", (10, 0.1)), run("c", (5, 0.9)), run("d", (12, 0.625))]
    found = reached([ours, *peers])
    assert [(entry["of"], entry["by"]) for entry in found] == [(name, "topk") for name in "abcd"]
    # 0.4 lies two thirds of the way from 1 s to 3 s, 0.625 half-way from 5 s to 7 s.
    assert [entry["processor_s"] for entry in found] == [0.233, 0.1, None, 0.5]
    assert [entry["clock_s"] for entry in found] == [0.233, 0.1, None, 0.5]
