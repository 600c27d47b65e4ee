"""The allocation history: against the parents that a made-up training passes through, and of a real run's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from saeforest.errors import InputError
from saeforest.explore.api.allocation import allocation_history
from saeforest.explore.labels.labels import Labels
from saeforest.run_folder import RunFolder
from saeforest.saes import Event
from saeforest.structure.forest import ROOT, Forest
from saeforest.training.log import RunLog, read_log, read_moves

SIZES, STARTS, D = (4, 8, 12), (0, 4, 12, 24), 24


class Named(Labels):
    def __init__(self) -> None:
        pass

    def of(self, feature: int) -> str:
        return f"feature {feature}"


class Training(NamedTuple):
    """A made-up training: its logs, and the parents at the start and after each of its steps."""

    folder: Path
    parents: dict[int, list[int]]

    def forest(self) -> Forest:
        return Forest(torch.tensor(list(self.parents.values())[-1]), SIZES)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """Steps 5 and 9 move children within layers, step 9 twice; 12 moves some to the root; 20 promotes; 21 is idle."""
    rng = np.random.default_rng(0)
    parent = (
        [ROOT] * 4 + [int(rng.integers(4)) for _ in range(8)] + [int(rng.integers(12)) for _ in range(12)]
    )
    log, found = RunLog(tmp_path), {0: list(parent)}
    plan = [
        (5, "parents"),
        (9, "parents"),
        (9, "reallocation"),
        (12, "root_reset"),
        (20, "promoted"),
        (21, "parents"),
    ]
    for step, kind in plan:
        log.step({"step": step, "dead": [0, 1, 2]})
        for layers in ((1, 2),) if kind == "promoted" else ((1,), (2,)):
            moves = []
            for feature in range(STARTS[layers[0]], STARTS[layers[-1] + 1]):
                new = ROOT if kind == "root_reset" else int(rng.integers(-1, STARTS[1]))
                if step != 21 and new != parent[feature] and rng.random() < 0.5:
                    moves.append((feature, parent[feature], new))
                    parent[feature] = new
            about: dict[str, object] = {"event": kind, "step": step, "moved": len(moves)}
            if kind == "parents":
                about |= {"excess": 0.3 + step / 100, "excess_null": 0.01}
            log.event(Event(about if len(layers) > 1 else about | {"layer": layers[0], "dead": step}, moves))
        found[step] = list(parent)
    return Training(tmp_path, found)


def test_the_history_is_that_of_the_parents_at_each_step(training: Training) -> None:
    moves = read_moves(training.folder, D)
    history = allocation_history(read_log(training.folder), moves, training.forest(), Named())
    assert history is not None
    states = list(training.parents.values())
    assert history.steps == tuple(training.parents)
    assert history.kinds == (
        "start",
        "parents",
        "parents + reallocation",
        "root_reset",
        "promoted",
        "parents",
    )
    assert [layer.layer for layer in history.layers] == [1, 2]
    for entry in history.layers:
        first, size = STARTS[entry.layer], SIZES[entry.layer]
        own = range(first, first + size)
        of_layer = [[state[f] for f in own if state[f] != ROOT] for state in states]
        assert entry.with_parent == pytest.approx([len(parents) / size for parents in of_layer])
        assert entry.families == tuple(len(set(parents)) for parents in of_layer)
        assert entry.largest == tuple(max(map(parents.count, parents), default=0) for parents in of_layer)
        lines = [
            [m for line in moves if line.step == step for m in line.moves if m[0] in own]
            for step in history.steps
        ]
        assert entry.moved == tuple(map(len, lines))
        assert entry.from_root == tuple(sum(old == ROOT for _, old, _ in found) for found in lines)
        assert entry.to_root == tuple(sum(new == ROOT for _, _, new in found) for found in lines)
        assert entry.dead == (None, 5, 9, 12, None, 21)
        assert entry.excess == pytest.approx((None, 0.35, 0.39, None, None, 0.51))
        assert entry.excess_null == (None, 0.01, 0.01, None, None, 0.01)
        assert sum(entry.moved) > 0
    assert {parent.id for parent in history.parents} <= set(range(4 + 8))
    for parent in history.parents:
        assert parent.label == f"feature {parent.id}"
        assert parent.children == tuple(state.count(parent.id) for state in states)
        assert parent.gained == sum(m[2] == parent.id for line in moves for m in line.moves)
        assert parent.lost == sum(m[1] == parent.id for line in moves for m in line.moves)
    changes = [parent.gained + parent.lost for parent in history.parents]
    assert changes == sorted(changes, reverse=True)


def test_without_the_single_moves_only_the_log_counts(training: Training) -> None:
    lines = read_log(training.folder)
    history = allocation_history(lines, [], training.forest(), Named())
    assert history is not None
    assert history.parents == ()
    for entry in history.layers:
        logged = [
            sum(line["moved"] for line in lines if line.get("layer") == entry.layer and line["step"] == step)
            for step in history.steps
        ]
        assert entry.moved == tuple(logged)
        assert set(entry.with_parent) == set(entry.largest) == set(entry.from_root) == {None}


def test_moves_that_do_not_lead_to_the_forest_say_nothing_of_parents(training: Training) -> None:
    other = list(training.parents.values())[-1]
    *_, moved = read_moves(training.folder, D)
    feature = moved.moves[-1][0]
    other[feature] = 0 if other[feature] != 0 else 1
    forest = Forest(torch.tensor(other), SIZES)
    history = allocation_history(read_log(training.folder), read_moves(training.folder, D), forest, Named())
    assert history is not None
    assert history.parents == ()
    assert set(history.layers[0].families) == {None}


def test_the_log_of_an_hsae_counts_features_without_a_parent() -> None:
    lines = [{"event": "hierarchy", "step": 7, "layer": 1, "moved": 3, "to_root": 2, "parents": 4}]
    forest = Forest(torch.tensor([ROOT] * 4 + [0] * 8), (4, 8))
    history = allocation_history(lines, [], forest, Named())
    assert history is not None
    (layer,) = history.layers
    assert layer.moved == (0, 3)
    assert layer.with_parent == (None, 0.75)
    assert layer.families == (None, 4)
    assert layer.to_root == (None, None)


def test_a_log_without_events_has_no_history() -> None:
    forest = Forest(torch.tensor([ROOT, 0]), (1, 1))
    assert allocation_history([{"step": 1}], [], forest, Named()) is None


def test_the_history_of_a_finished_run(finished_run: Path) -> None:
    _, sae = RunFolder(finished_run).load()
    moves = read_moves(finished_run, sae.d_sae)
    history = allocation_history(read_log(finished_run), moves, sae.forest, Named())
    assert history is not None
    assert history.parents
    at_the_start = [
        len(sae.forest.children(parent.id)) - parent.gained + parent.lost for parent in history.parents
    ]
    assert [parent.children[0] for parent in history.parents] == at_the_start
    assert history.layers[0].with_parent[0] is not None


@pytest.mark.parametrize(
    "line",
    [
        {"step": 3, "event": "parents", "moves": [[24, 0, 1]]},
        {"step": 3, "event": "parents", "moves": [[4, 0, -2]]},
        {"step": 3, "event": "parents", "moves": [[-1, 0, 1]]},
        {"step": 3, "event": "parents", "moves": [[4, 0, True]]},
        {"step": 3, "event": "parents", "moves": [[4, 0]]},
        {"step": 3, "event": "parents"},
        {"step": 3, "moves": []},
    ],
)
def test_damaged_moves_are_refused(line: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "allocations.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"allocations\.jsonl: 1 lines are damaged"):
        read_moves(tmp_path, D)
