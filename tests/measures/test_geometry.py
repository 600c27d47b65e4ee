"""Children beneath their parent, siblings in the decoder, and the loss landscape, against slow arithmetic."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import geometry as oracle
from saeforest.errors import InputError
from saeforest.measures import geometry as geometry_module
from saeforest.measures import landscape
from saeforest.measures.geometry import GeometryConfig, choose_families, geometry, principal_plane, umap_plane
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.saes.normalizer import Scale
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from subject_cases import given

PLAIN = GeometryConfig(min_count=5, max_points=10_000, umap_families=0)


def seen(
    values: Tensor, x: Tensor, forest: Forest, encoder: Tensor, decoder: Tensor | None = None
) -> Subject:
    """What one pass has shown: `values [n, d_sae]` of the features on activations `x`; nothing else is looked at."""
    n, d_sae = values.shape
    config = TreeConfig(
        layer_sizes=forest.layer_sizes,
        k_per_layer=tuple(1 for _ in forest.layer_sizes),
        normalize_activations="none",
    )
    sae = TreeSAE(config, x.shape[1])
    sae.encoder.data = encoder.float()
    sae.decoder.data = torch.nn.functional.normalize((encoder if decoder is None else decoder).float())
    pairs = PairStatistics(d_sae, threshold=0)
    pairs.add(SparseCode(values.float(), torch.arange(d_sae).expand(n, d_sae).contiguous()))
    return given(sae, {"model": "planted"}, forest=forest, firings=pairs, activations=x.float())


def planted(turn: int = 0, d: int = 6, each: int = 40, n_children: int = 4) -> Subject:
    """A parent with children at the corners of a square, far from the origin; each encoder row points at the corner
    of the child that is `turn` further on."""
    angle = 0.3 + 2 * math.pi * torch.arange(n_children) / n_children
    corner = torch.zeros(n_children, d)
    corner[:, 1], corner[:, 3] = angle.cos(), angle.sin()
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(n_children).repeat(each)
    x = 5 + 3 * corner[label] + 0.2 * torch.randn(len(label), d, generator=generator)
    values = torch.zeros(len(label), 1 + n_children)
    values[:, 0] = 1
    values[torch.arange(len(label)), 1 + label] = 2
    encoder = torch.cat([torch.ones(1, d), corner.roll(-turn, 0) + 0.1])
    return seen(values, x, Forest(torch.tensor([-1] + [0] * n_children), (1, n_children)), encoder)


def tangled(seed: int = 0, n: int = 300, d: int = 7) -> Subject:
    """Three layers with families of many sizes, children in two layers, siblings that fire together, rare features."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (4, 12, 16)
    parent = torch.cat(
        [
            torch.full((4,), -1),
            torch.randint(-1, 3, (12,), generator=generator),
            torch.randint(0, 9, (16,), generator=generator),
        ]
    )
    rate = 0.02 + 0.2 * torch.rand(sum(sizes), generator=generator)
    values = torch.rand(n, sum(sizes), generator=generator) * (
        torch.rand(n, sum(sizes), generator=generator) < rate
    )
    values[:, 30] = 0
    encoder, decoder = torch.randn(2, sum(sizes), d, generator=generator)
    x = values @ decoder + 3 + 0.3 * torch.randn(n, d, generator=generator)
    return seen(values, x, Forest(parent, sizes), encoder, decoder)


def dense(case: Subject) -> oracle.FloatArray:
    values = torch.zeros(len(case.rows), case.forest.d_sae, dtype=torch.float64)
    for feature in range(case.forest.d_sae):
        token, value = case.pairs.firings(feature)
        values[token.long(), feature] = value.double()
    return values.numpy()


def float64(tensor: Tensor) -> oracle.FloatArray:
    return tensor.detach().double().numpy()


def measured(case: Subject, **changes: Any) -> Record:
    config = {"min_count": 5, "max_points": 10_000, "umap_families": 0, **changes}
    return geometry(case, GeometryConfig(**config))


def families(record: Record) -> list[Mapping[str, Any]]:
    return record.detail["families"]


# -- beneath a parent


@pytest.mark.parametrize(("turn", "agreement"), [(0, 1.0), (1, 0.0), (2, 0.0)])
def test_children_that_point_toward_their_clusters_or_past_them(turn: int, agreement: float) -> None:
    record = measured(planted(turn))
    assert record.value["agreement"] == agreement
    assert record.interval["agreement"] is None  # of one family
    toward = record.value["toward"]
    assert toward == pytest.approx(math.cos(turn * math.pi / 2), abs=0.1)
    explained = record.value["explained_2"]
    assert explained is not None
    assert explained > 0.95
    assert record.detail["chance"] == 0.25
    (family,) = families(record)
    assert [child["child"] for child in family["children"]] == [1, 2, 3, 4]
    assert [child["n"] for child in family["children"]] == [40] * 4
    assert family["overlap"] == 0


def test_a_family_against_slow_arithmetic() -> None:
    case = tangled()
    f, u, encoder = dense(case), float64(case.x), float64(case.sae.encoder)
    parents = (0, 1, 2, 5)
    record = measured(case, parents=parents)
    cosines, agrees, explained, by_child = [], [], [], {}
    for parent, entry in zip(parents, families(record), strict=True):
        children = oracle.usable_children(f, case.forest.parent.tolist(), parent, 5)
        children = sorted(sorted(children, key=lambda c: -(f[:, c] > 0).sum())[:8])
        own_cosine, own_agrees, own_explained = oracle.family(f, u, encoder, children)
        by_child |= {c: (own_cosine[c], float(own_agrees[c])) for c in own_cosine}
        assert [child["child"] for child in entry["children"]] == children
        for child in entry["children"]:
            assert child["cosine"] == pytest.approx(own_cosine[child["child"]], abs=1e-9)
            assert child["agrees"] == own_agrees[child["child"]]
        assert entry["overlap"] == pytest.approx(oracle.overlap(f, children))
        assert sum(entry["explained"]) == pytest.approx(own_explained)
        cosines += own_cosine.values()
        agrees += own_agrees.values()
        explained.append(own_explained)
    assert record.value["toward"] == pytest.approx(np.mean(cosines))
    assert record.value["agreement"] == pytest.approx(np.mean(agrees))
    assert 0 < np.mean(agrees) < 1
    assert record.value["explained_2"] == pytest.approx(np.mean(explained))
    assert record.detail["chance"] == pytest.approx(len(parents) / len(cosines))
    low, high = record.interval["toward"] or (0, 0)
    assert low < np.mean(cosines) < high
    for i, name in enumerate(("toward", "agreement")):
        child, score = record.edge_scores[name]
        assert child.tolist() == list(by_child)
        assert score.tolist() == pytest.approx([both[i] for both in by_child.values()])


@pytest.mark.parametrize("seed", range(4))
def test_families_that_overlap_least_are_chosen(seed: int) -> None:
    case = tangled(seed)
    usable = case.pairs.marginals.n >= 5
    expected = oracle.chosen(dense(case), case.forest.parent.tolist(), 5, 2)
    assert len(expected) == 2
    assert [family.parent for family in choose_families(case, usable, 2)] == expected
    assert [family["parent"] for family in families(measured(case, families=2))] == expected


def test_points_are_capped_by_child_and_drawn_by_the_seed() -> None:
    case = planted()
    capped = measured(case, max_points=7)
    (family,) = families(capped)
    assert [child["n"] for child in family["children"]] == [7] * 4
    assert [sum(p[2] == i for p in family["points"]) for i in range(4)] == [7] * 4
    assert capped.value["agreement"] == 1
    other = measured(case, max_points=7, seed=1)
    assert families(other)[0]["points"] != family["points"]


def test_points_kept_for_the_figure_are_centered_and_few() -> None:
    (family,) = families(measured(planted(each=300)))
    assert family["n"] == 1200
    assert len(family["points"]) == 600
    (family,) = families(measured(planted(each=40)))
    points = np.array(family["points"])
    assert np.allclose(points[:, :2].mean(0), 0)
    for i, child in enumerate(family["children"]):
        assert np.allclose(points[points[:, 2] == i, :2].mean(0), child["centroid"])


def test_two_runs_are_equal_to_the_last_bit() -> None:
    first, second = (measured(tangled(), max_points=20) for _ in range(2))
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = measured(tangled(), parents=(0, 1))
    record.write(tmp_path / "geometry.json")
    assert json.dumps(Record.read(tmp_path / "geometry.json").to_json()) == json.dumps(record.to_json())
    assert record.settings["config"]["min_count"] == 5
    assert record.settings["model"] == "planted"


def test_a_child_that_is_nowhere_the_strongest_is_left_out() -> None:
    case = planted()
    values = torch.from_numpy(dense(case))
    values[:, 4] = 0.5 * (values[:, 3] > 0)  # beneath child 3 wherever it fires
    record = measured(seen(values, case.x, case.forest, case.sae.encoder.data))
    child = families(record)[0]["children"][3]
    assert (child["child"], child["n"], child["cosine"], child["agrees"], child["centroid"]) == (
        4, 0, None, None, None,
    )  # fmt: skip
    assert record.value["agreement"] == 1
    assert record.detail["chance"] == pytest.approx(1 / 3)
    values[:, 1:3] = 0
    record = measured(seen(values, case.x, case.forest, case.sae.encoder.data), parents=(0,))
    assert "one child fires most strongly wherever" in families(record)[0]["why"]
    assert "detail.families says why" in record.null["agreement"]


def test_activations_are_read_in_the_units_of_the_sae() -> None:
    case = planted()
    plain = families(measured(case))[0]
    case.sae.normalizer = Scale(0.5)
    scaled = families(measured(case))[0]
    assert np.allclose(np.array(scaled["points"])[:, :2], 0.5 * np.array(plain["points"])[:, :2], atol=1e-5)


def test_the_plane_of_points_without_two_dimensions() -> None:
    line = torch.arange(10.0, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
    assert principal_plane(line) is None
    assert principal_plane(line[:1]) is None
    assert principal_plane(line[:, :1]) is None
    assert principal_plane(torch.full((10, 3), 0.1, dtype=torch.float64)) is None
    case = planted()
    record = measured(
        seen(torch.from_numpy(dense(case)), torch.ones_like(case.x), case.forest, case.sae.encoder)
    )
    assert record.value["agreement"] is None
    assert "no variance" in families(record)[0]["why"]


def test_the_plane_of_a_known_ellipse() -> None:
    turn = torch.linspace(0, 2 * math.pi, 201, dtype=torch.float64)[:-1]
    points = torch.stack([turn.cos(), 0 * turn, -2 * turn.sin()], 1)
    plane = principal_plane(points + 7)
    assert plane is not None
    assert torch.allclose(plane.axes, torch.tensor([[0.0, 0, 1], [1, 0, 0]], dtype=torch.float64))
    assert torch.allclose(plane.explained, torch.tensor([0.8, 0.2], dtype=torch.float64))


# -- in the decoder


@pytest.mark.parametrize("seed", range(3))
def test_siblings_and_unrelated_features_against_all_pairs(seed: int) -> None:
    case = tangled(seed)
    of_case = (
        dense(case), float64(case.sae.W_dec), case.forest.parent.tolist(), case.forest.layer.tolist(), 5
    )  # fmt: skip
    siblings, unrelated = oracle.sibling_cosines(*of_case)
    record = measured(case)
    assert record.value["sibling_cosine"] == pytest.approx(np.mean(siblings), abs=1e-6)
    assert record.value["unrelated_cosine"] == pytest.approx(np.mean(unrelated), abs=1e-6)
    assert record.detail["sibling_families"] == len(siblings) > 3
    expected = oracle.mean_sibling_cosines(*of_case)
    of_edges = dict(zip(*(part.tolist() for part in record.edge_scores["sibling_cosine"]), strict=True))
    assert of_edges == pytest.approx(expected, abs=1e-6)
    low, high = record.interval["sibling_cosine"] or (0, 0)
    assert low < np.mean(siblings) < high


def test_a_family_that_is_its_whole_layer_has_no_unrelated_feature() -> None:
    record = measured(planted())
    assert record.value["sibling_cosine"] is not None
    assert record.value["unrelated_cosine"] is None
    assert "fills its layer" in record.null["unrelated_cosine"]


@pytest.fixture
def instead_of_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plane is the first two coordinates: UMAP itself compiles for many seconds."""
    monkeypatch.setattr(geometry_module, "find_spec", lambda name: name)
    monkeypatch.setattr(geometry_module, "umap_plane", lambda rows, seed: rows[:, :2])


@pytest.mark.usefixtures("instead_of_umap")
def test_what_is_shown_of_siblings() -> None:
    case = tangled()
    record = measured(case, umap_families=2)
    umap = record.detail["umap"]
    label = [point[2] for point in umap["points"]]
    features, parent, layer = umap["features"], case.forest.parent.tolist(), case.forest.layer.tolist()
    assert len(set(features)) == len(features) == len(label)
    decoder = float64(case.sae.W_dec)
    assert np.allclose([point[:2] for point in umap["points"]], decoder[features, :2])
    shown = set()
    for i, p in enumerate(umap["parents"]):
        own = [f for f, own in zip(features, label, strict=True) if own == i]
        assert len(own) >= 3
        assert {parent[f] for f in own} == {p}
        assert len({layer[f] for f in own}) == 1
        shown.add((p, layer[own[0]]))
    others = [f for f, own in zip(features, label, strict=True) if own == -1]
    assert others
    assert len(others) <= len(features) - len(others)
    assert not any((parent[f], layer[f]) in shown for f in others)
    assert all(case.pairs.marginals.n[f] >= 5 for f in features)
    assert measured(case, umap_families=2, seed=3).detail["umap"]["parents"] != umap["parents"]


def test_no_picture_where_umap_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_module, "find_spec", lambda name: None)
    without = measured(tangled(), umap_families=3)
    assert "umap-learn" in without.detail["umap"]["why"]
    assert without.value == measured(tangled()).value
    assert "umap_families = 0" in measured(tangled()).detail["umap"]["why"]


@pytest.fixture
def umap_as_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiling takes UMAP many seconds; a few rows are faster without."""
    before = set(sys.modules)
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", True)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("umap", "pynndescent"):
            del sys.modules[name]


@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
@pytest.mark.usefixtures("umap_as_python")
def test_umap_is_the_same_twice() -> None:
    rows = np.random.default_rng(0).standard_normal((8, 5))
    first = umap_plane(rows, 0)
    assert first.shape == (8, 2)
    assert np.isfinite(first).all()
    assert np.array_equal(first, umap_plane(rows, 0))
    assert not np.array_equal(first, umap_plane(rows, 1))
    assert np.isfinite(umap_plane(rows[:4], 0)).all()


# -- what can't be measured


def test_a_flat_forest_has_nothing_to_look_at() -> None:
    case = planted()
    flat = seen(torch.from_numpy(dense(case)), case.x, Forest(torch.full((5,), -1), (1, 4)), case.sae.encoder)
    record = measured(flat, umap_families=2)
    assert set(record.value.values()) == {None}
    assert set(record.interval.values()) == {None}
    assert all("no edges" in why for why in record.null.values())
    assert record.detail["chance"] is None
    named = measured(flat, parents=(0,))
    assert families(named) == [{"parent": 0, "why": "has no children"}]
    assert "detail.families says why" in named.null["toward"]


def test_families_too_small_or_too_rare() -> None:
    two = measured(planted(n_children=2))
    assert two.value["agreement"] is None
    assert "3 to 8 children that fired 5 times" in two.null["agreement"]
    assert measured(planted(n_children=2), parents=(0,)).value["agreement"] == 1
    rare = measured(planted(), min_count=41, parents=(0,))
    assert families(rare)[0]["why"].startswith("0 of its 4 children fired 41 times")
    assert rare.value["sibling_cosine"] is None


def test_no_activation_at_all() -> None:
    case = planted()
    nothing = seen(torch.zeros(0, 5), torch.zeros(0, 6), case.forest, case.sae.encoder)
    record = measured(nothing)
    assert set(record.null.values()) == {"no token was measured"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"families": 0}, "geometry.families = 0"),
        ({"min_count": 0}, "geometry.min_count = 0"),
        ({"max_points": 1}, "geometry.max_points = 1"),
        ({"umap_families": -1}, "geometry.umap_families = -1"),
        ({"seed": -1}, "geometry.seed = -1"),
        ({"parents": (0, 0)}, r"geometry.parents = \[0, 0\]"),
        ({"parents": (5,)}, "geometry.parents: feature 5: expected 0 to 4"),
        ({"parents": (-1,)}, "geometry.parents: feature -1: expected 0 to 4"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        measured(planted(), **changes)


# -- the loss landscape (App. H)

COSINES = [
    (0.5, 0.5, 0.05),
    (0.9, 0.2, 0.05),
    (0.3, 0.8, -0.2),
    (0.6, 0.6, 0.6),
    (0.0, 0.7, 0.4),
    (-0.3, 0.4, 0.1),
]


def test_vector_14() -> None:
    k = 0.05
    assert landscape.l1_converged(0.5, 0.5, k) == pytest.approx(1.275)
    assert landscape.l2_converged(0.5, 0.5, k) == pytest.approx(0.525)
    assert landscape.l1_converged(1, 0, k) == 0
    assert landscape.l2_converged(0, 1, k) == 0
    assert landscape.l1_converged(0, 1, k) == 1


@pytest.mark.parametrize(("s_p", "s_c", "k"), COSINES)
def test_losses_equal_those_of_the_vectors(s_p: float, s_c: float, k: float) -> None:
    vectors = oracle.directions(s_p, s_c, k)
    for alpha, beta in ((0.0, 0.0), (0.4, 0.7), (1.3, -0.2)):
        l1, l2 = oracle.vector_losses(alpha, beta, *vectors)
        assert landscape.l1(alpha, beta, s_p, s_c, k) == pytest.approx(l1)
        assert landscape.l2(alpha, beta, s_p, s_c, k) == pytest.approx(l2)


@pytest.mark.parametrize(("s_p", "s_c", "k"), COSINES)
def test_minima_equal_those_found_numerically(s_p: float, s_c: float, k: float) -> None:
    l1, l2 = oracle.least(s_p, s_c, k)
    assert landscape.l1_minimum(s_p, s_c, k) == pytest.approx(l1, abs=1e-9)
    assert landscape.l2_minimum(s_p, s_c, k) == pytest.approx(l2, abs=1e-9)


def test_the_printed_minima_leave_out_the_square_of_k() -> None:
    for s_p, s_c, _ in COSINES:
        for k in (0.1, 0.01, 0.001):
            assert abs(landscape.l1_minimum(s_p, s_c, k) - landscape.l1_converged(s_p, s_c, k)) <= 2 * k**2
            assert abs(landscape.l2_minimum(s_p, s_c, k) - landscape.l2_converged(s_p, s_c, k)) <= 2 * k**2


def test_which_cosines_three_directions_can_have() -> None:
    s = np.linspace(0, 1, 21)
    parent, child = np.meshgrid(s, s)
    for k in (0.0, 0.05, 0.4):
        possible = landscape.possible(parent, child, k)
        least = landscape.l2_minimum(parent, child, k)
        assert (possible == (least >= 0))[np.abs(least) > 1e-12].all()
        assert possible[0, 0]
        assert not possible[-1, -1]


def test_cosines_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="k = 1"):
        landscape.l2_minimum(0.5, 0.5, 1.0)
    with pytest.raises(ValueError, match="expected a cosine"):
        landscape.l1_minimum(0.5, 0.5, 1.5)
    assert landscape.l1_minimum(0.5, 0.5, 1.0) == pytest.approx(1.5)
