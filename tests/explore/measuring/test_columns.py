"""The columns of edges and of null pairs against dense float64 arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from explore_cases import MIN_COUNT, D, World
from saeforest.explore.measuring.columns import COLUMNS
from saeforest.explore.measuring.edges import places_among
from saeforest.structure.directions import RIDGE
from saeforest.structure.forest import ROOT
from saeforest.structure.shuffled import shuffled_parents


def null_parents(world: World) -> np.ndarray:
    return shuffled_parents(world.sae.forest, world.index.n_fired).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


class Oracle:
    """Every column of a pair, by its definition. null: the parent of the null pair that goes with the edge."""

    def __init__(self, world: World) -> None:
        self.fires, self.sae = world.fires.numpy(), world.sae
        self.f = world.f.numpy()
        self.encoder = world.sae.encoder.detach().double().numpy()
        self.decoder = world.sae.W_dec.detach().double().numpy()
        with torch.no_grad():
            self.detector = world.sae.detect(world.x, torch.arange(world.sae.d_sae)).numpy()
        self.token = world.tokens.ids.flatten()[world.rows].numpy()
        u = world.sae.normalize(world.x)[0].double().numpy()
        covariance = np.cov(u.T, bias=True)
        self.u = u
        self.regular = covariance + RIDGE * np.trace(covariance) / D * np.eye(D)
        self.layer = world.sae.forest.layer.numpy()

    def on(self, c: int) -> np.ndarray:
        values = np.sort(self.f[self.fires[:, c], c])
        m = (len(values) + 1) // 2
        return self.detector[:, c] > (values[m - 1] + values[m]) / 2

    def coverage(self, p: int, c: int) -> float:
        return (self.fires[:, p] & self.fires[:, c]).sum() / self.fires[:, c].sum()

    def p_child(self, p: int, c: int) -> float:
        return (self.fires[:, p] & self.fires[:, c]).sum() / self.fires[:, p].sum()

    def ungated(self, p: int, c: int) -> float:
        if self.fires[:, c].sum() < MIN_COUNT:
            return np.nan
        return self.fires[self.on(c), p].mean()

    def lift(self, p: int, c: int) -> float:
        if self.fires[:, c].sum() < MIN_COUNT:
            return np.nan
        on, base = self.on(c), self.fires[:, p].mean()
        return np.log2((self.fires[on, p].sum() + base) / (on.sum() + 1) / base) if base else 0.0

    def cos_decoder(self, p: int, c: int) -> float:
        return cosine(self.decoder[p], self.decoder[c])

    def cos_encoder(self, p: int, c: int) -> float:
        return cosine(self.encoder[c], self.decoder[p]) if self.encoder[c].any() else 0.0

    def _cosines(self, c: int) -> np.ndarray | None:
        fires = self.fires[:, c]
        if not MIN_COUNT <= fires.sum() < len(fires):
            return None
        direction = np.linalg.solve(self.regular, self.u[fires].mean(0) - self.u.mean(0))
        rows = self.decoder / np.linalg.norm(self.decoder, axis=1, keepdims=True)
        return rows @ direction / np.linalg.norm(direction)

    def s_res(self, p: int, c: int) -> float:
        found = self._cosines(c)
        return np.nan if found is None else min(found[p], found[c])

    def rank_parent(self, p: int, c: int) -> float:
        found = self._cosines(c)
        return np.nan if found is None else 1 + (found > found[p]).sum()

    def rank_child(self, p: int, c: int) -> float:
        found = self._cosines(c)
        return np.nan if found is None else 1 + (found > found[c]).sum()

    def sibling_overlap(self, siblings: list[int], c: int) -> float:
        alive = [s for s in siblings if s != c and self.layer[s] == self.layer[c] and self.fires[:, s].any()]
        if not alive or not self.fires[:, c].any():
            return np.nan
        one = self.fires[:, c]
        return float(
            np.mean([(one & self.fires[:, s]).sum() / (one | self.fires[:, s]).sum() for s in alive])
        )

    def tokens_alike(self, p: int, q: int, c: int) -> tuple[float, float]:
        nothing = (np.nan, np.nan)
        if self.fires[:, c].sum() < MIN_COUNT:
            return nothing
        on = self.on(c)
        apart = [np.flatnonzero(self.fires[:, f] & ~self.fires[:, c] & ~on) for f in (p, q)]
        if min(on.sum(), *map(len, apart)) < MIN_COUNT:
            return nothing
        m, rng = min(map(len, apart)), np.random.default_rng([0, p, c])
        # Of the two parents, the one with more tokens is thinned.
        found = [a if len(a) == m else rng.choice(a, m, replace=False) for a in apart]
        first, second = (1 - divergence(self.token[a], self.token[on]) for a in found)
        return first, second


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon, in bits."""
    total = 0.0
    for token in set(a.tolist()) | set(b.tolist()):
        p, q = (a == token).mean(), (b == token).mean()
        m = (p + q) / 2
        total += sum(x / 2 * np.log2(x / m) for x in (p, q) if x)
    return total


@pytest.fixture
def oracle(world: World) -> Oracle:
    return Oracle(world)


def expected(world: World, oracle: Oracle, name: str, null: bool) -> np.ndarray:
    own, other = world.sae.forest.parent.numpy(), null_parents(world)
    parent = other if null else own
    found = np.full(len(parent), np.nan)
    for c in np.flatnonzero(own != ROOT).tolist():
        if name == "tokens_alike":
            found[c] = oracle.tokens_alike(own[c], other[c], c)[int(null)]
        elif name == "sibling_overlap":
            found[c] = oracle.sibling_overlap(np.flatnonzero(parent == parent[c]).tolist(), c)
        elif name in ("coverage", "p_child"):
            fires = oracle.fires[:, c if name == "coverage" else parent[c]]
            found[c] = getattr(oracle, name)(parent[c], c) if fires.any() else np.nan
        else:
            found[c] = getattr(oracle, name)(parent[c], c)
    return found


@pytest.mark.parametrize("name", [column.about.name for column in COLUMNS])
def test_columns_of_edges_and_of_null_pairs(world: World, oracle: Oracle, name: str) -> None:
    edge, null = (expected(world, oracle, name, of_null) for of_null in (False, True))
    np.testing.assert_allclose(world.index.columns[name], edge, atol=1e-5, rtol=1e-5)
    own, other = world.sae.forest.parent.numpy(), null_parents(world)
    moved = np.flatnonzero((own != ROOT) & (own != other))
    assert world.index.null_child.tolist() == moved.tolist()
    assert world.index.null_parent.tolist() == other[moved].tolist()
    np.testing.assert_allclose(world.index.null_columns[name], null[moved], atol=1e-5, rtol=1e-5)
    assert np.isfinite(edge).sum() > 5 or name == "tokens_alike"


@pytest.mark.parametrize("name", [column.about.name for column in COLUMNS])
def test_places_among_null_pairs(world: World, name: str) -> None:
    forest, index = world.sae.forest, world.index
    places, edge = index.column_places[name], index.columns[name]
    about = next(column.about for column in COLUMNS if column.about.name == name)
    if not about.of_pair:
        assert places.isnan().all()
        return
    null = dict(zip(index.null_child.tolist(), index.null_columns[name].tolist(), strict=True))
    layer = forest.layer.tolist()
    for c in range(forest.d_sae):
        p = int(forest.parent[c])
        alike = [
            x
            for k, x in null.items()
            if p != ROOT
            and (layer[k], layer[int(forest.parent[k])]) == (layer[c], layer[p])
            and not np.isnan(x)
        ]
        value = float(edge[c])
        if p == ROOT or np.isnan(value) or not alike:
            assert places[c].isnan()
            continue
        below = sum((x < value) + (x == value) / 2 for x in alike) / len(alike)
        # Values that differ by rounding only may be ties here.
        assert float(places[c]) == pytest.approx(
            below, abs=1.01 / len(alike) if _close(alike, value) else 1e-6
        )


def _close(alike: list[float], value: float) -> bool:
    return any(0 <= abs(x - value) < 1e-6 for x in alike)


def test_places_by_hand() -> None:
    edge = torch.tensor([0.5, 2.0, 1.0, torch.nan, 9.0], dtype=torch.float64)
    null = torch.tensor([1.0, 0.0, 1.0, 5.0, 7.0], dtype=torch.float64)
    moved = torch.tensor([True, True, True, False, False])
    found = places_among(edge, null, moved, torch.tensor([0, 0, 0, 0, 1]))
    assert found[:3].tolist() == pytest.approx([1 / 3, 1.0, 2 / 3])
    assert found[3:].isnan().all()


def test_a_gate_makes_mechanical_columns(world: World) -> None:
    """With the gate, every edge covers; the columns that are marked otherwise do not see it."""
    if type(world.sae).__name__ == "TreeSAE":
        c = world.sae.forest.edges[1]
        assert world.index.columns["coverage"][c[world.index.n_fired[c] > 0]].eq(1).all()
    mechanical = {column.about.name for column in COLUMNS if column.about.mechanical}
    assert mechanical == {"coverage", "p_child", "s_res", "rank_parent", "sibling_overlap"}


def test_columns_are_described() -> None:
    names = [column.about.name for column in COLUMNS]
    assert len(set(names)) == len(names)
    for column in COLUMNS:
        assert column.about.description.endswith(".")
        assert isinstance(column.compute, Callable)
