"""Replicates and differences of two values, against loops over resamples drawn by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saeforest.errors import InputError
from saeforest.measures.bootstrap import (
    RESAMPLES,
    SEED,
    Contrast,
    Estimate,
    estimate,
    p_value,
    paired_difference,
    same_units,
)
from saeforest.measures.record import EdgeScores, Record, Replicates

DOCUMENTS = same_units("documents", torch.arange(30))


def mean_of(values: np.ndarray, units: str = DOCUMENTS) -> Estimate:
    return estimate(lambda w: {"mean": w @ values / w.sum(1)}, len(values), units)


def contrast(a: Estimate, b: Estimate, *, same_text: bool = True) -> Contrast:
    one, other = a.value["mean"], b.value["mean"]
    assert one is not None
    assert other is not None
    return paired_difference(one, other, a.replicates["mean"], b.replicates["mean"], same_text=same_text)


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Values of two SAEs on 30 documents, which have most of their spread in common."""
    rng = np.random.default_rng(5)
    shared = rng.normal(size=30)
    return shared + 0.1, shared + 0.02 * rng.normal(size=30)


def test_a_paired_difference_equals_a_loop_over_the_same_documents() -> None:
    a, b = texts()
    found = contrast(mean_of(a), mean_of(b))
    drawn = np.random.default_rng(SEED).integers(30, size=(RESAMPLES, 30))
    by_hand = [float(np.mean([a[d] - b[d] for d in resample])) for resample in drawn]
    assert found.paired
    assert found.value == pytest.approx(float((a - b).mean()))
    assert found.interval == pytest.approx(tuple(np.percentile(by_hand, (2.5, 97.5))), abs=2e-5)


def test_values_over_other_units_or_another_text_are_independent() -> None:
    a, b = texts()
    paired = contrast(mean_of(a), mean_of(b))
    others = [
        contrast(mean_of(a), mean_of(b, same_units("documents", torch.arange(1, 31)))),
        contrast(mean_of(a), mean_of(b), same_text=False),
        contrast(mean_of(a, ""), mean_of(b, "")),
    ]
    spread = float(np.hypot(a.std(), b.std()) / np.sqrt(30))
    for found in others:
        assert not found.paired
        assert found.value == paired.value
        assert found.interval is not None
        # That of the sum of two independent variances, far wider than the paired one.
        assert (found.interval[1] - found.interval[0]) / 3.92 == pytest.approx(spread, rel=0.1)
    assert paired.interval is not None
    assert paired.interval[1] - paired.interval[0] < 0.1 * spread


def test_a_difference_without_replicates_has_no_interval() -> None:
    assert paired_difference(2.0, 0.5, None, Replicates("", np.zeros(3))) == Contrast(1.5, None, None, False)
    assert p_value(Contrast(1.5, None, None, False)) is None


@pytest.mark.parametrize(("below", "expected"), [(0, 2 / 1001), (24, 50 / 1001), (500, 1.0)])
def test_a_p_value_counts_the_replicates_on_the_smaller_side(below: int, expected: float) -> None:
    drawn = np.concatenate([np.full(below, -1.0), np.full(1000 - below, 2.0)])
    assert p_value(Contrast(1.0, None, Replicates("", drawn), True)) == pytest.approx(expected)
    assert p_value(Contrast(-1.0, None, Replicates("", -drawn), True)) == pytest.approx(expected)


def test_units_are_the_same_only_with_the_same_numbers_of_the_same_kind() -> None:
    one = same_units("parents", torch.tensor([1, 2]))
    assert one == same_units("parents", np.array([1, 2]))
    assert one.startswith("parents ")
    others = [torch.tensor([2, 1]), torch.tensor([[1, 2]]), torch.tensor([1, 2], dtype=torch.int32)]
    assert (
        len({one, same_units("children", torch.tensor([1, 2])), *(same_units("parents", o) for o in others)})
        == 5
    )


def record(found: Estimate) -> Record:
    scores = EdgeScores(torch.tensor([3]), torch.tensor([0.5], dtype=torch.float64))
    return Record(
        "some",
        found.value,
        found.interval,
        "nats",
        7,
        {},
        replicates=found.replicates,
        edge_scores={"mean": scores},
    )


def test_a_record_keeps_its_replicates_in_one_line_and_no_scores_of_edges(tmp_path: Path) -> None:
    found = mean_of(texts()[0])
    written = record(found)
    written.write(tmp_path / "some.json")
    read = Record.read(tmp_path / "some.json")
    assert read == written
    assert read.edge_scores == {}
    assert read.replicates["mean"].units == DOCUMENTS
    assert (read.replicates["mean"].drawn == found.replicates["mean"].drawn).all()
    assert len((tmp_path / "some.json").read_text().splitlines()) < 30
    assert "replicates" not in written.to_json()


def test_an_undefined_resample_stays_undefined(tmp_path: Path) -> None:
    drawn = np.array([1.0, np.nan, 3.0])
    value = Record("some", {"a": 1.0}, {"a": None}, "nats", 1, {}, replicates={"a": Replicates("", drawn)})
    value.write(tmp_path / "some.json")
    assert np.array_equal(Record.read(tmp_path / "some.json").replicates["a"].drawn, drawn, equal_nan=True)


def test_a_record_of_an_older_version_is_read_without_replicates(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record(mean_of(texts()[0])).to_json()))
    assert Record.read(path).replicates == {}


@pytest.mark.parametrize(
    "kept", [{"mean": [1, 2]}, {"mean": {"units": "", "drawn": "1 x"}}, {"b": {"units": "", "drawn": "1"}}]
)
def test_damaged_replicates_are_named(tmp_path: Path, kept: object) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(record(mean_of(texts()[0])).to_json() | {"replicates": kept}))
    with pytest.raises(InputError, match="not the record of a measure"):
        Record.read(path)
