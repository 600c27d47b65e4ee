"""What the index says of samples, windows, neighbors and telling tokens, against slow loops over dense activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explore_cases import CONTEXT, MIN_COUNT, N_CONTEXTS, World
from saeforest.explore.index.form import BINS, EACH, INTERVALS, NEIGHBORS, REACH, TELLING, WINDOW
from saeforest.explore.measuring import counts as counts_module
from saeforest.explore.measuring import firings as firings_module
from saeforest.explore.measuring.counts import Counts
from saeforest.explore.measuring.firings import hashes, lowest
from saeforest.explore.measuring.strongest import passages
from saeforest.structure.forest import ROOT


def splitmix(row: int) -> int:
    """The hash of a row, in Python's own numbers."""
    mask = (1 << 64) - 1
    z = (row + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z & mask


def test_hashes_are_those_of_splitmix64() -> None:
    rows = torch.tensor([0, 1, 2, 77, 10_000_000])
    z = [splitmix(row) for row in rows.tolist()]
    # The last step shifts with the sign filled in by zeros, of which the lower 63 bits are kept.
    assert hashes(rows).tolist() == [(n ^ n >> 31) & (1 << 63) - 1 for n in z]
    assert int(lowest(1000, 100).sum()) == 100
    assert bool(lowest(1000, 50)[~lowest(1000, 100)].any()) is False
    assert not lowest(5, 0).any()
    assert lowest(5, 9).all()


def fired(world: World, feature: int) -> np.ndarray:
    """The activations on which a feature fires, in the order of reading."""
    return world.fires[:, feature].nonzero().flatten().numpy()


def test_histograms(world: World) -> None:
    for f in range(world.sae.d_sae):
        values = world.f[fired(world, f), f].numpy()
        expected = [0] * BINS
        for value in values:
            expected[min(int(value / values.max() * BINS), BINS - 1)] += 1
        assert world.index.histogram[f].tolist() == expected
        edges = world.index.histogram_edges(f)
        assert len(edges) == BINS + 1
        assert float(edges[-1]) == float(world.index.value_max[f])


def test_samples_are_drawn_from_equal_parts_of_the_range(world: World) -> None:
    passage = passages(world.tokens)[1](world.rows).tolist()
    rows = world.rows.tolist()
    for f in range(world.sae.d_sae):
        at = fired(world, f)
        top = float(world.f[at, f].max()) if len(at) else 1.0
        drawn_rows, drawn_values = [], []
        for interval in range(INTERVALS - 1, -1, -1):
            mine = [i for i in at if min(int(float(world.f[i, f]) / top * INTERVALS), 4) == interval]
            # Of a passage, the one with the highest of the first 24 bits of its hash; then the highest four.
            ranked = sorted(mine, key=lambda i: (-(int(hashes(world.rows[i : i + 1])) >> 39), rows[i]))
            by_passage = {passage[i]: i for i in reversed(ranked)}
            kept = [i for i in ranked if by_passage[passage[i]] == i][:EACH]
            kept.sort(key=lambda i: -float(world.f[i, f]))
            drawn_rows += [rows[i] for i in kept] + [-1] * (EACH - len(kept))
            drawn_values += [float(world.f[i, f]) for i in kept] + [0.0] * (EACH - len(kept))
        assert world.index.sample_row[f].tolist() == drawn_rows
        assert world.index.sample_value[f].tolist() == drawn_values
        edges = world.index.sample_edges(f)
        for i, value in enumerate(drawn_values):
            if value:
                assert edges[i // EACH + 1] - 1e-6 <= value <= edges[i // EACH] + 1e-6


def test_windows_hold_what_is_around_a_context(world: World) -> None:
    place = {row: i for i, row in enumerate(world.rows.tolist())}
    forest, index = world.sae.forest, world.index
    contexts = torch.cat([index.top_row, index.sample_row], dim=1)
    assert index.window_values.shape == (forest.d_sae, N_CONTEXTS + INTERVALS * EACH, WINDOW)
    assert index.parents.tolist() == [f for f in range(forest.d_sae) if forest.children(f)]
    family = {parent: i for i, parent in enumerate(index.parents.tolist())}
    for f in range(forest.d_sae):
        children = forest.children(f)
        for c, row in enumerate(contexts[f].tolist()):
            values, strongest = [0] * WINDOW, [-1] * WINDOW
            for i in range(WINDOW) if row >= 0 else ():
                other = row - REACH + i
                if other // CONTEXT != row // CONTEXT or other not in place:
                    continue
                documents = world.tokens.document_of(torch.tensor([row, other]))
                if documents[0] != documents[1]:
                    continue
                at = place[other]
                if world.fires[at, f]:
                    values[i] = max(round(float(world.f[at, f] / index.value_max[f].double()) * 255), 1)
                on = [(float(world.f[at, k]), -j) for j, k in enumerate(children) if world.fires[at, k]]
                if on:
                    strongest[i] = -max(on)[1]
            assert np.abs(index.window_values[f, c].int().numpy() - np.array(values)).max() <= 1
            assert ((index.window_values[f, c] > 0).numpy() == (np.array(values) > 0)).all()
            if children:
                assert index.window_child[family[f], c].tolist() == strongest


def best(score: dict[int, float], order: dict[int, tuple[float, int]]) -> list[int]:
    return sorted(score, key=lambda g: (-round(score[g], 9), order[g]))[:NEIGHBORS]


def test_nearest_decoder_rows(world: World) -> None:
    rows = world.sae.W_dec.detach().double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for f, cosine in enumerate(rows @ rows.T):
        cosine[f] = -np.inf
        expected = np.argsort(-cosine)[:NEIGHBORS]
        assert world.index.near_id[f].tolist() == expected.tolist()
        np.testing.assert_allclose(world.index.near_cos[f], cosine[expected], atol=1e-6)


def test_neighbors_by_coverage(world: World) -> None:
    forest, index = world.sae.forest, world.index
    fires = world.fires.double().numpy()
    n, together = fires.sum(0), fires.T @ fires
    density = n / len(fires)
    for f in range(forest.d_sae):
        over = {
            g: together[f, g] / n[f] - density[g]
            for g in range(forest.d_sae)
            if g != f and n[f] >= MIN_COUNT and together[f, g] / max(n[f], 1) > density[g]
        }
        under = {
            g: together[f, g] / n[g] - density[f]
            for g in range(forest.d_sae)
            if g not in set(forest.subtree(f))
            and n[g] >= MIN_COUNT
            and together[f, g] / max(n[g], 1) > density[f]
        }
        for score, sign, ids, p, whole in (
            (over, 1, index.over_id[f], index.over_p[f], lambda g, f=f: n[f]),
            (under, -1, index.under_id[f], index.under_p[f], lambda g: n[g]),
        ):
            expected = best(score, {g: (sign * n[g], g) for g in score})
            assert [g for g in ids.tolist() if g >= 0] == expected
            np.testing.assert_allclose(
                p[: len(expected)], [together[f, g] / whole(g) for g in expected], rtol=1e-6
            )
            assert p[len(expected) :].isnan().all()


def test_telling_tokens(world: World) -> None:
    forest, ids = world.sae.forest, world.tokens.ids.flatten()[world.rows].tolist()
    for f in range(forest.d_sae):
        parent = int(forest.parent[f])
        own = [ids[i] for i in fired(world, f)]
        base = [
            token
            for i, token in enumerate(ids)
            if parent == ROOT or world.fires[i, parent] or world.fires[i, f]
        ]
        worth = {}
        for token in set(own):
            q = base.count(token) / len(base)
            p = (own.count(token) + q) / (len(own) + 1)
            if p > q * (1 + 1e-9):
                worth[token] = (p * np.log2(p / q), np.log2(p / q))
        expected = sorted(worth, key=lambda token: (-round(worth[token][0], 12), token))[:TELLING]
        found = [token for token in world.index.child_tokens[f].tolist() if token >= 0]
        assert found == expected
        np.testing.assert_allclose(
            world.index.child_tokens_lift[f, : len(found)], [worth[t][1] for t in found], rtol=1e-5
        )


def test_planes_of_parents(world: World) -> None:
    forest, found = world.sae.forest, world.index.geometry
    u = world.sae.normalize(world.x)[0].half().double().numpy()
    encoder = world.sae.encoder.detach().double().numpy()
    encoder /= np.maximum(np.linalg.norm(encoder, axis=1, keepdims=True), 1e-12)
    assert len(found.parent) > 2
    for g, parent in enumerate(found.parent.tolist()):
        children = forest.children(parent)
        at = fired(world, parent)[: found.row.shape[1]]
        n = len(at)
        assert found.row[g].tolist() == world.rows[at].tolist() + [-1] * (found.row.shape[1] - n)
        assert found.points[g, n:].isnan().all()
        variance, axes = np.linalg.eigh(np.cov(u[at].T, bias=True))
        axes = axes[:, [-1, -2]].T
        axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
        np.testing.assert_allclose(found.points[g, :n], (u[at] - u[at].mean(0)) @ axes.T, atol=1e-4)
        np.testing.assert_allclose(found.explained[g], variance[[-1, -2]] / variance.sum(), atol=1e-5)
        for i, row in enumerate(at):
            on = [(float(world.f[row, c]), -j) for j, c in enumerate(children) if world.fires[row, c]]
            assert found.child[g, i] == (-max(on)[1] if on else -1)
        for c in children:
            if world.index.n_fired[c]:
                np.testing.assert_allclose(found.direction[c], encoder[c] @ axes.T, atol=1e-4)
    roots = (forest.parent == ROOT).nonzero().flatten()
    assert found.direction[roots].isnan().all()


def test_shards_and_their_sizes_change_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firings_module, "SHARD_FIRINGS", 50)
    monkeypatch.setattr("saeforest.explore.measuring.build._SLICE", 37)
    monkeypatch.setattr("saeforest.spill.WAITING", 100)

    def begin(counts: Counts) -> None:
        counts.firings.folder = tmp_path

    index = world.build(begin=begin)
    assert len(list(tmp_path.iterdir())) > 5
    for name, tensor in index.tensors().items():
        torch.testing.assert_close(
            tensor, world.index.tensors()[name], equal_nan=True, rtol=1e-6, atol=1e-6, msg=name
        )


def test_where_pairs_would_take_too_much_some_activations_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeforest.explore.measuring.build.PAIR_FIRINGS", int(world.index.n_fired.sum()) // 2)
    monkeypatch.setattr(counts_module, "DETECTED", 100)
    index = world.build()
    assert 0 < index.about.n_pairs < index.about.n_tokens == world.index.about.n_tokens
    assert 0 < index.about.n_detected <= 100
    kept = (hashes(world.rows).double() < 2.0**62).numpy()
    assert index.about.n_pairs == pytest.approx(kept.sum(), abs=1)
    assert torch.equal(index.n_fired, world.index.n_fired)
    assert torch.equal(index.window_values, world.index.window_values)
    p, c = world.sae.forest.edges
    fires = world.fires.numpy()[kept]
    expected = (fires[:, c] & fires[:, p]).sum(0) / np.maximum(fires[:, p].sum(0), 1)
    measured = fires[:, p].sum(0) > 0
    np.testing.assert_allclose(index.columns["p_child"][c].numpy()[measured], expected[measured], rtol=1e-5)
