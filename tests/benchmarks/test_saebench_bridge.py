"""SAEBench's view of our SAEs, without SAEBench: the object that it evaluates does what the SAE itself does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from saeforest.interventions import edited, set_to
from saeforest.interventions.splice import Splice
from saeforest.measures.ravel_swap import swap_of
from saeforest.saes import SAE, LayerNorm, SystemConfig, TopKConfig, TreeConfig, build, save_sae

sys.path.insert(
    0, str(Path(__file__).parents[2])
)  # the benchmarks are run from the repository, and are no package

D_IN = 24


class BaseSAE(nn.Module):
    """What SAEBench's class of this name holds, as far as an SAE of ours needs it."""

    def __init__(
        self, d_in: int, d_sae: int, model_name: str, hook_layer: int, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        self.W_enc, self.W_dec = (
            nn.Parameter(torch.zeros(d_in, d_sae)),
            nn.Parameter(torch.zeros(d_sae, d_in)),
        )
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_in))
        self.cfg = SimpleNamespace(model_name=model_name, hook_layer=hook_layer)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, in an environment that looks as if it had SAEBench."""
    for name in ("sae_bench", "sae_bench.custom_saes", "sae_bench.custom_saes.base_sae"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["sae_bench.custom_saes.base_sae"], "BaseSAE", BaseSAE, raising=False)
    name = "benchmarks.saebench.theirs.adapter"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def saved(config: SystemConfig, folder: Path, *, exact_inverse: bool | None = None) -> SAE:
    """An SAE whose biases are not zero, in a folder."""
    sae = build(config, D_IN, seed=3)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        sae.b_dec.copy_(0.3 * torch.randn(D_IN, generator=generator))
    if exact_inverse is not None:
        sae.normalizer = LayerNorm(exact_inverse)
    save_sae(sae.eval(), folder)
    return sae


CONFIGS = {
    "topk": (TopKConfig((80,), (7,)), None),
    "topk, exact inverse": (TopKConfig((80,), (7,)), True),
    "topk, not normalized": (TopKConfig((80,), (7,), normalize_activations="none"), None),
    "tree": (TreeConfig((16, 24, 40), (4, 3, 2)), None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_object_codes_and_decodes_as_our_sae_does(adapter: Any, tmp_path: Path, name: str) -> None:
    config, exact = CONFIGS[name]
    sae = saved(config, tmp_path / "sae", exact_inverse=exact)
    x = 3 * torch.randn(5, 40, D_IN, generator=torch.Generator().manual_seed(1)) + 1

    theirs = adapter.ForestSAE(tmp_path / "sae", "model", 15)
    code, stats = sae.encode_with_stats(x)
    f = theirs.encode(x)

    assert f.shape == (5, 40, sae.d_sae)
    assert torch.equal(f > 0, code.dense(sae.d_sae) > 0)
    torch.testing.assert_close(f, code.dense(sae.d_sae), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.decode(f), sae.decode(code, stats), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(theirs.encode(x[0]), f[0], rtol=1e-5, atol=1e-5)  # words come as [n, d]


def test_a_tree_is_gated(adapter: Any, tmp_path: Path) -> None:
    """Otherwise the comparison with a tree's codes would show nothing."""
    sae = saved(TreeConfig((16, 24, 40), (4, 3, 2)), tmp_path / "sae")
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1))
    theirs = adapter.ForestSAE(tmp_path / "sae", "model", 15)
    gated = theirs.encode(x)
    theirs.parent.fill_(-1)
    assert not torch.equal(gated > 0, theirs.encode(x) > 0)
    child = gated[:, sae.parent >= 0] > 0
    parent = gated[:, sae.parent[sae.parent >= 0]] > sae.config.activation_threshold
    assert bool(child.any())
    assert bool((~child | parent).all())


def test_the_codes_of_other_activations_are_refused(adapter: Any, tmp_path: Path) -> None:
    saved(TopKConfig((80,), (7,)), tmp_path / "sae")
    theirs = adapter.ForestSAE(tmp_path / "sae", "model", 15)
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(1))
    f = theirs.encode(x)
    theirs.encode(x[:4])
    with pytest.raises(ValueError, match="latest encode"):
        theirs.decode(f)


@pytest.mark.parametrize("name", CONFIGS)
def test_swaps_and_clamps_are_those_of_the_object(adapter: Any, tmp_path: Path, name: str) -> None:
    """RAVEL's swap and unlearning's clamp as SAEBench makes them: encode, change the dense code, decode."""
    config, exact = CONFIGS[name]
    sae = saved(config, tmp_path / "sae", exact_inverse=exact)
    generator = torch.Generator().manual_seed(1)
    base, source = (3 * torch.randn(20, D_IN, generator=generator) + 1 for _ in range(2))
    mask = torch.rand(sae.d_sae, generator=generator)
    theirs = adapter.ForestSAE(tmp_path / "sae", "model", 15)

    of_source, f = theirs.encode(source), theirs.encode(base)
    swapped = theirs.decode((1 - mask) * f + mask * of_source)
    ours = swap_of(sae, torch.cat([base, source]), False).mixed(range(20), range(20, 40), mask)
    torch.testing.assert_close(ours, swapped, rtol=1e-4, atol=1e-4)

    features = list(range(0, sae.d_sae, 3))
    lower = f.clone()
    lower[:, features] = torch.where(f[:, features] > 0, -5.0, f[:, features])
    clamped = base - theirs.decode(f) + theirs.decode(lower)
    edit = edited([set_to(features, -5.0, where_active=True)])
    with torch.no_grad():
        torch.testing.assert_close(Splice(sae, edit, error=True)(base), clamped, rtol=1e-3, atol=1e-3)
    assert bool((clamped - base).abs().max() > 1)
