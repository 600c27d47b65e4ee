"""Dead features over training, from hand-written logs and from that of a real run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from saeforest.errors import InputError
from saeforest.measures import Record
from saeforest.measures.dead_training import DeadTrainingConfig, dead_training, read_dead_rates
from saeforest.saes import TreeConfig, TreeSAE, load_sae
from saeforest.training.log import read_log
from subject_cases import given

SIZES = (4, 10)
LINES: list[dict[str, Any]] = [
    {"event": "harvest", "step": 0, "tokens": 99},
    {"step": 1, "tokens": 8, "dead": [0, 0]},
    {"event": "reallocation", "step": 5, "layer": 1, "moved": 3},
    {"event": "reallocation", "step": 5, "layer": 2, "moved": 1},
    {"event": "reallocation", "step": 6, "layer": 1, "moved": 0},  # moved nothing
    {"step": 10, "tokens": 80, "dead": [1, 5]},
    {"event": "hierarchy", "step": 12, "layer": 1, "moved": 3},  # an HSAE's, not of dead features
    {"event": "root_reset", "step": 15, "layer": 1, "moved": 2},
    {"step": 20, "tokens": 160, "dead": [0, 1]},
    {"step": 30, "tokens": 240, "dead": [0, 0]},
]


def write_log(folder: Path, lines: Sequence[Mapping[str, Any]] = LINES) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def measure(log: Path | None, sizes: tuple[int, ...] = SIZES, **config: Any) -> Record:
    """Of a subject of which nothing but the layers of its SAE and its log is known."""
    sae = TreeSAE(TreeConfig(layer_sizes=sizes, k_per_layer=(1,) * len(sizes)), 4)
    subject = given(sae, {"model": "m"}, training_log=log)
    return dead_training(subject, DeadTrainingConfig(**config))


def test_rates_are_shares_of_the_layers(tmp_path: Path) -> None:
    record = measure(write_log(tmp_path))
    assert record.measure == "dead_training"
    assert record.detail["steps"] == [1, 10, 20, 30]
    assert record.detail["tokens"] == [8, 80, 160, 240]
    assert record.detail["rate"] == [[0, 0.25, 0, 0], [0, 0.5, 0.1, 0]]
    assert record.detail["rate_all"] == [0, 6 / 14, 1 / 14, 0]
    assert record.detail["reallocations"] == [5, 15]
    assert record.value == {
        "end": 0, "peak": 6 / 14, "almost_zero_from": 240,
        "end_layer_0": 0, "peak_layer_0": 0.25, "end_layer_1": 0, "peak_layer_1": 0.5,
    }  # fmt: skip
    assert set(record.interval.values()) == {None}
    assert record.settings["model"] == "m"
    assert record.settings["config"] == {"almost_zero": 0.01}
    assert record.unit_of("almost_zero_from") == "tokens of training"
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == record


@pytest.mark.parametrize(("limit", "tokens"), [(0.0, 240), (0.1, 160), (0.49, 160), (0.5, 8)])
def test_almost_zero_must_last(tmp_path: Path, limit: float, tokens: int) -> None:
    assert measure(write_log(tmp_path), almost_zero=limit).value["almost_zero_from"] == tokens


def test_a_rate_that_stays_high_is_no_zero(tmp_path: Path) -> None:
    record = measure(write_log(tmp_path, LINES[:-1]))
    assert record.value["end_layer_1"] == 0.1
    assert record.value["almost_zero_from"] is None
    assert record.null == {"almost_zero_from": "a layer ends with more than 1.00% of its features dead"}


def test_without_a_log_all_is_undefined(tmp_path: Path) -> None:
    for log in (None, tmp_path / "nowhere"):
        record = measure(log)
        assert set(record.value.values()) == {None}
        assert set(record.null.values()) == {"the SAE was loaded without the log of its training"}
        assert record.detail["steps"] == []
        assert record.tokens == 0
    empty = measure(write_log(tmp_path / "empty", LINES[:1]))
    assert set(empty.null.values()) == {"training logged no step"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ('{"step": 20, "tok', r"log\.jsonl, line 3: not valid JSON"),
        ("[1, 2]", r"line 3: not a line that training wrote"),
        ('{"event": "reallocation", "moved": 2}', r"line 3: not a line that training wrote"),
        ('{"step": 2, "tokens": 9}', r"line 3: key 'dead' is missing; the file is damaged"),
        ('{"step": 2, "tokens": 9, "dead": ["x", 1]}', r"line 3: key 'dead.0': expected a valid integer"),
        (
            '{"step": 2, "tokens": 9, "dead": [1, 2, 3]}',
            r"line 3: dead features \[1, 2, 3\], but .* \[4, 10\]",
        ),
        ('{"step": 2, "tokens": 9, "dead": [5, 2]}', r"line 3: dead features \[5, 2\]"),
        ('{"step": 2, "tokens": 9, "dead": [-1, 2]}', r"line 3: key 'dead.0'"),
        ("[" * 5_000, r"line 3: not valid JSON \(nested too deeply\)"),
        ('{"step": %s}' % ("9" * 5_000), r"line 3: not valid JSON \(a number of 5,000 digits\)"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str, message: str) -> None:
    path = write_log(tmp_path, LINES[:2]) / "log.jsonl"
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(InputError, match=message):
        measure(tmp_path)


def test_a_log_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="line 1: not valid JSON"):
        measure(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_dead_rates(tmp_path / "nowhere", SIZES)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_the_limit_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match=r"^dead_training.almost_zero = .*: expected a fraction"):
        DeadTrainingConfig(almost_zero=share)


def test_the_log_of_a_run(finished_run: Path) -> None:
    """Training's own lines: the last ones say what the record does."""
    sizes = load_sae(finished_run / "sae").forest.layer_sizes
    record = measure(finished_run, sizes)
    lines = [line for line in read_log(finished_run) if "event" not in line]
    assert record.detail["steps"] == [line["step"] for line in lines]
    assert [record.value[f"end_layer_{i}"] for i in range(len(sizes))] == [
        n / size for n, size in zip(lines[-1]["dead"], sizes, strict=True)
    ]
    moved = {
        line["step"]
        for line in read_log(finished_run)
        if line.get("event") in ("reallocation", "root_reset") and line["moved"]
    }
    assert record.detail["reallocations"] == sorted(moved)
    assert moved
