"""Absorption: its calculus and its probes against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import absorption as oracle
from saeforest.measures.absorption import (
    AbsorptionConfig,
    absorption_of,
    absorption_scores,
    encode_words,
    k_sparse,
    split_features,
)
from saeforest.measures.first_letters import (
    f1_scores,
    train_probe,
)
from saeforest.saes import (
    TreeConfig,
    TreeSAE,
)
from saeforest.seeds import seeded
from saeforest.sparse_code import SparseCode

CONFIG = AbsorptionConfig()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_code(n: int, k: int, d_sae: int, seed: int) -> SparseCode:
    """Some slots are unused."""
    ids = torch.stack([torch.randperm(d_sae, generator=generator(seed + i))[:k] for i in range(n)])
    values = (torch.rand(n, k, generator=generator(seed)) - 0.2).relu()
    return SparseCode(values, torch.where(values > 0, ids, 0))


# The calculus


def one_word(
    p: list[float], cosines: list[float], n_main: int, projection: float
) -> tuple[float, bool, list[int]]:
    """A word on which features 0, 1, ... have projections `p`, the first of them main."""
    cosine = torch.tensor([cosines]).double()
    main = torch.arange(len(p))[None] < n_main
    values, ids = torch.tensor([p]).double() / cosine, torch.arange(len(p))[None]
    found = absorption_of(values, cosine, main, ids, torch.tensor([projection]), CONFIG)
    return float(found.fraction), bool(found.full), found.absorbers[0].tolist()


def test_known_words() -> None:
    """docs/spec/test-vectors.md#absorption."""
    absorbers, cosines = [5.0, 1.0, 0.5, 0.4], [0.5] * 5
    assert one_word([2.0, *absorbers], cosines, 1, 10.0) == (pytest.approx(6.5 / 8.5), False, [1, 2, 3])
    assert one_word([0.0, *absorbers], cosines, 1, 10.0)[0] == 1
    assert one_word([11.0, *absorbers], cosines, 1, 10.0)[0] == 0
    assert one_word([2.0, 2.0, 0.5, 0.5, 0.4], cosines, 1, 10.0)[0] == 0
    assert one_word([0.0, 4.0], [0.5, 0.03], 1, 10.0)[1]
    assert not one_word([0.0, 3.9], [0.5, 0.03], 1, 10.0)[1]


def test_borders() -> None:
    # What the absorbers have beyond the projection does not count.
    assert one_word([2.0, 20.0], [0.5] * 2, 1, 10.0)[0] == pytest.approx(0.8)
    # Cosines: below 0.1 nothing of the fraction, below 0.025 no full absorption.
    assert one_word([0.0, 9.0], [0.5, 0.09], 1, 10.0)[:2] == (0, True)
    assert one_word([0.0, 9.0], [0.5, 0.02], 1, 10.0)[:2] == (0, False)
    # A main feature that speaks, however softly, rules out full absorption; a harmful one does not lower the fraction.
    assert one_word([1e-6, 9.0], [0.5] * 2, 1, 10.0)[1] is False
    assert one_word([-1.0, 9.0], [-0.5, 0.5], 1, 10.0)[:2] == (1, False)
    # No projection, nothing to explain.
    for projection in (0.0, -1.0):
        assert one_word([0.0, 9.0], [0.5] * 2, 1, projection)[:2] == (0, False)
        assert one_word([-3.0, 9.0], [-0.5, 0.5], 1, projection)[:2] == (0, False)


def test_absorption_against_the_oracle() -> None:
    n, k, d_sae, d = 120, 6, 15, 4
    code = random_code(n, k, d_sae, 3)
    decoder = torch.randn(d_sae, d, generator=generator(1)) + 0.3
    x = torch.randn(n, d, generator=generator(2)) + 0.3
    directions = torch.randn(26, d, generator=generator(4)) + 0.3
    letter = torch.arange(n) % 3 + 5
    mains = {5: [0, 3], 6: [4], 7: [14, 2, 9]}
    found = absorption_scores(code, x, letter, directions, decoder, mains, CONFIG)
    dense, w = code.dense(d_sae).double().numpy(), directions.double().numpy()
    expected = [
        oracle.absorption(dense[i], x[i].double().numpy(), w[own], decoder.double().numpy(), mains[own])
        for i, own in enumerate(letter.tolist())
    ]
    np.testing.assert_allclose(found.fraction.numpy(), [e[0] for e in expected], atol=1e-5)
    assert found.full.tolist() == [e[1] for e in expected]
    kinds = found.fraction
    assert bool((kinds == 0).any() and (kinds == 1).any() and ((kinds > 0) & (kinds < 1)).any())
    assert 0 < int(found.full.sum()) < n


def test_split_rule() -> None:
    """docs/spec/test-vectors.md#splitting."""
    for f1, expected in [([0.50, 0.54, 0.57, 0.60], 2), ([0.5, 0.53], 1), ([0.0], 1), ([0.1, 0.2, 0.9], 3)]:
        assert split_features(f1) == oracle.n_main(f1) == expected
    assert split_features([0.5, 0.53], jump=0.02) == 2


def test_f1() -> None:
    predicted = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]]).bool()
    truth = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]]).bool()
    assert f1_scores(predicted, truth).tolist() == [0.5, 1, 0]


# Probes


@pytest.mark.parametrize(
    ("sparse", "l1", "weight_decay"), [(False, 0.0, 1e-4), (True, 0.01, 1e-6), (True, 0.0, 0.1)]
)
def test_letter_probe_against_the_oracle(sparse: bool, l1: float, weight_decay: float) -> None:
    n, width, batch, epochs, seed = 37, 12, 10, 6, 5
    code = random_code(n, 4, width, 11)
    inputs = code if sparse else code.dense(width)
    letter = torch.randint(0, 5, (n,), generator=generator(6))
    found = train_probe(
        inputs, letter, width=width, batch=batch, epochs=epochs, weight_decay=weight_decay, l1=l1, seed=seed
    )

    draws = seeded(seed, "letter probe")
    bound = width**-0.5
    weight, bias = (torch.empty(s).uniform_(-bound, bound, generator=draws) for s in ((width, 26), (26,)))
    order = [torch.randperm(n, generator=draws).split(batch) for _ in range(epochs)]
    expected = oracle.letter_probe(
        code.dense(width).double().numpy(),
        letter.tolist(),
        weight.double().numpy(),
        bias.double().numpy(),
        [[rows.tolist() for rows in steps] for steps in order],
        weight_decay,
        l1,
    )
    np.testing.assert_allclose(found.weight.numpy(), expected[0], atol=2e-4)
    np.testing.assert_allclose(found.bias.numpy(), expected[1], atol=2e-4)
    scores = code.dense(width).double().numpy() @ expected[0] + expected[1]
    np.testing.assert_allclose(found.scores(inputs).numpy(), scores, atol=2e-3)


def test_k_sparse_against_the_oracle() -> None:
    n, d_sae, max_k = 90, 20, 4
    train, test = random_code(n, 6, d_sae, 21), random_code(40, 6, d_sae, 500)
    weight = torch.randn(d_sae, 26, generator=generator(8))
    # A letter is more likely where some of its features of large weight are active.
    best = weight.topk(2, dim=0).indices

    def label(code: SparseCode, seed: int) -> Tensor:
        evidence = code.dense(d_sae)[:, best[:, :3]].sum(1)
        return (evidence + 0.3 * torch.rand(evidence.shape, generator=generator(seed))).argmax(1)

    y_train, y_test = label(train, 9), label(test, 10)
    found = k_sparse(train, y_train, test, y_test, weight, [2, 0], max_k)
    assert list(found) == [2, 0]
    for letter, (features, f1) in found.items():
        assert features == np.argsort(-weight[:, letter].numpy())[:max_k].tolist()
        for k in range(1, max_k + 1):
            inputs = train.dense(d_sae)[:, features[:k]].double().numpy()
            w, b = oracle.balanced_logistic(inputs, (y_train == letter).tolist())
            scores = test.dense(d_sae)[:, features[:k]].double().numpy() @ w + b
            assert np.abs(scores).min() > 1e-3  # or rounding decides
            assert f1[k - 1] == pytest.approx(oracle.f1((scores > 0).tolist(), (y_test == letter).tolist()))
    assert max(found[0].f1 + found[2].f1) > 0.4


def test_no_more_features_than_there_are() -> None:
    code = SparseCode(torch.rand(8, 1, generator=generator(0)), torch.tensor([0, 1] * 4)[:, None])
    letter = torch.tensor([0, 1] * 4)
    found = k_sparse(
        code, letter, code, letter, torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(1, 13), [0], 10
    )
    assert found[0].features == [0, 1]
    assert len(found[0].f1) == 2


def test_effective_units_add_up_to_the_reconstruction() -> None:
    sae = TreeSAE(TreeConfig(layer_sizes=(5, 20), k_per_layer=(2, 3)), 8)
    sae.decoder.data *= torch.linspace(0.5, 2, 25)[:, None]
    x = 7 * torch.randn(30, 8, generator=generator(0)) + 3
    code, stats = encode_words(sae, x, "effective"), sae.encode_with_stats(x)[1]
    total = code.dense(25) @ F.normalize(sae.decoder.detach()) + stats.std * sae.b_dec + stats.mean
    torch.testing.assert_close(total, sae(x), atol=1e-4, rtol=1e-4)
    raw = encode_words(sae, x, "raw")
    assert torch.equal(raw.dense(25), sae.encode(x).dense(25))
