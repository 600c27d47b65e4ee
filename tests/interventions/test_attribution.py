"""Attributions against finite differences, one value at a time, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import VOCAB, WIDTH, gpt2, tiny
from saeforest.errors import InputError
from saeforest.interventions import Where
from saeforest.interventions.attribution import (
    Attribution,
    ablation_effects,
    attribute,
    logit_difference,
    text_loss,
)
from saeforest.lm import LanguageModel
from saeforest.saes import SAE, TreeConfig, build
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest

SITE = "blocks.1.hook_resid_post"
IDS = torch.randint(3, VOCAB, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = tiny(gpt2)  # its norms compute in the precision of the model
    lm.model.double()
    return lm


@pytest.fixture(scope="module")
def sae() -> SAE:
    sae = build(TreeConfig(layer_sizes=(6, 12, 22), k_per_layer=(2, 2, 2)), WIDTH, seed=1).double()
    sae.metadata = {"hook_name": SITE}
    return sae.requires_grad_(False)


def metric_at(lm: LanguageModel, sae: SAE, metric: Any, scaled: Any) -> float:
    """The metric with the values of the code changed by a function of row, position and dense code."""
    x = lm.activations(IDS, SITE)
    new = x.clone()
    for row in range(2):
        for place in range(1, 5):
            code, stats = sae.encode_with_stats(x[row, place])
            dense = code.dense(sae.d_sae)
            new[row, place] += stats.std * ((scaled(row, place, dense.clone()) - dense) @ sae.W_dec)
    return float(metric(lm.logits(IDS, {SITE: lambda _: new})))


def slope(lm: LanguageModel, sae: SAE, metric: Any, row: int, place: int, f: int, share: float) -> float:
    """The derivative of the metric by one value, where all are multiplied by `share`."""

    def at(step: float) -> float:
        def scaled(r: int, t: int, dense: Tensor) -> Tensor:
            dense = share * dense
            if (r, t) == (row, place):
                dense[f] += step
            return dense

        return metric_at(lm, sae, metric, scaled)

    return (at(1e-5) - at(-1e-5)) / 2e-5


def loss(logits: Tensor) -> Tensor:
    """The loss of the texts in double precision, for finite differences."""
    return -logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None]).sum()


@pytest.mark.parametrize("metric", [logit_difference(4, 7), loss], ids=["difference", "loss"])
def test_against_finite_differences(lm: LanguageModel, sae: SAE, metric: Any) -> None:
    x = lm.activations(IDS, SITE)
    dense = sae.encode(x).dense(sae.d_sae)
    dense[:, 0] = 0
    by_gradient = attribute(lm, sae, IDS, metric, method="gradient").code.dense(sae.d_sae)
    integrated = attribute(lm, sae, IDS, metric, steps=3).code.dense(sae.d_sae)
    if metric is loss:
        dense[:, -1] = 0  # nothing is predicted there
    assert torch.equal(by_gradient != 0, dense != 0)
    for row, place, f in dense.nonzero().tolist()[::23]:
        value = float(dense[row, place, f])
        assert float(by_gradient[row, place, f]) == pytest.approx(
            value * slope(lm, sae, metric, row, place, f, 1.0), rel=1e-4, abs=1e-7
        )
        mean = sum(slope(lm, sae, metric, row, place, f, share) for share in (1 / 6, 1 / 2, 5 / 6)) / 3
        assert float(integrated[row, place, f]) == pytest.approx(value * mean, rel=1e-4, abs=1e-7)


def test_the_loss_of_a_text(lm: LanguageModel) -> None:
    assert float(text_loss(IDS)(lm.logits(IDS))) == pytest.approx(float(loss(lm.logits(IDS))), rel=1e-5)


def test_integrated_gradients_add_up(lm: LanguageModel, sae: SAE) -> None:
    metric = logit_difference(4, 7)
    found = attribute(lm, sae, IDS, metric, steps=60)
    assert found.metric == pytest.approx(float(metric(lm.logits(IDS))), abs=1e-9)
    assert found.without == pytest.approx(
        metric_at(lm, sae, metric, lambda _r, _t, dense: 0 * dense), abs=1e-9
    )
    assert float(found.by_feature(sae.d_sae).sum()) == pytest.approx(found.metric - found.without, abs=5e-3)
    assert abs(found.metric - found.without) > 0.05


def test_edges_are_the_sums_below_them() -> None:
    parent = torch.tensor([-1, -1, 0, 0, 1, 2, 4, 5])
    forest = Forest(parent, (2, 3, 2, 1))
    code = SparseCode(torch.randn(2, 3, 4, dtype=torch.float64), torch.randint(0, 8, (2, 3, 4)))
    found = Attribution(code, 0.0, 0.0)
    by_feature = [float(code.values[code.ids == f].sum()) for f in range(8)]
    torch.testing.assert_close(found.by_feature(8), torch.tensor(by_feature, dtype=torch.float64))
    subtree = [sum(by_feature[g] for g in forest.subtree(f)) for f in range(8)]
    torch.testing.assert_close(found.by_subtree(forest), torch.tensor(subtree, dtype=torch.float64))
    expected = torch.tensor([subtree[c] for c in forest.edges[1].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found.by_edge(forest), expected)


def test_ablation_is_what_attributions_estimate(lm: LanguageModel, sae: SAE) -> None:
    """Exactly what a metric loses; nearly that where a metric is nearly linear: for values that are small."""
    metric = logit_difference(4, 7)
    active = (
        sae.encode(lm.activations(IDS, SITE)[:, 1:]).dense(sae.d_sae).sum((0, 1)).nonzero().flatten().tolist()
    )
    sets = [[active[0]], active[:3], list(range(sae.d_sae))]
    found = ablation_effects(lm, sae, IDS, metric, sets)

    def without(gone: list[int]) -> Any:
        def scaled(_row: int, _place: int, dense: Tensor) -> Tensor:
            dense[gone] = 0
            return dense

        return scaled

    clean = float(metric(lm.logits(IDS)))
    for effect, gone in zip(found.tolist(), sets, strict=True):
        assert effect == pytest.approx(clean - metric_at(lm, sae, metric, without(gone)), abs=1e-9)
    whole = attribute(lm, sae, IDS, metric, steps=60)
    assert float(found[2]) == pytest.approx(whole.metric - whole.without, abs=1e-9)


def test_positions_and_a_transcoder(lm: LanguageModel, sae: SAE) -> None:
    found = attribute(lm, sae, IDS, logit_difference(4, 7), Where([2]), method="gradient")
    assert (found.code.values != 0).any(-1).nonzero().tolist() == [[0, 2], [1, 2]]
    config = TreeConfig(
        layer_sizes=(6, 12), k_per_layer=(3, 3), normalize_activations="none", normalize_target="none"
    )
    transcoder = build(config, WIDTH, seed=1, d_out=WIDTH).double().requires_grad_(False)
    source, target = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    transcoder.metadata = {"hook_name": source, "hook_name_out": target}
    metric = logit_difference(4, 7)
    found = attribute(lm, transcoder, IDS, metric, method="gradient")
    values = transcoder.encode(lm.activations(IDS, source))
    y = lm.activations(IDS, target).requires_grad_()
    (grad,) = torch.autograd.grad(metric(lm.logits(IDS, {target: lambda _: y})), y)
    expected = (values.values * (grad[..., None, :] * transcoder.W_dec[values.ids]).sum(-1))[:, 1:]
    torch.testing.assert_close(found.code.values[:, 1:], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "part"), [({"steps": 0}, "steps = 0"), ({"site": "blocks.0.hook_resid_post"}, "site")]
)
def test_what_attribution_refuses(lm: LanguageModel, sae: SAE, options: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        attribute(lm, sae, IDS, text_loss(IDS), **options)
