"""SAEs of every system as SAEBench takes them: dense codes that decode to the same, edited or not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saeforest
from saeforest.errors import InputError
from saeforest.interop.dense import DenseSAE
from saeforest.interop.saebench import SAEBenchSAE, selected_saes, write_saebench
from saeforest.saes import HSAE, SAE, SYSTEMS, TopKConfig, build, save_sae

D = 12
SIZES = {
    "tree": ((8, 16, 24), (3, 3, 3)),
    "hsae": ((8, 16, 24), (3, 3, 3)),
    "expert_hsae": ((8, 24), (3, 3)),
    "matryoshka": ((8, 40), (6,)),
}


@torch.no_grad()
def made(architecture: str, normalize: str) -> SAE:
    default: Any = SYSTEMS[architecture].config_class()
    sizes, k = SIZES.get(architecture, ((48,), (6,)))
    more = {"subspace": 2} if architecture == "expert_hsae" else {}
    config = replace(default, layer_sizes=sizes, k_per_layer=k, normalize_activations=normalize, **more)
    sae = build(config, D, seed=1)
    for name, place in sae.tensors().items():
        if name == "threshold":
            place.fill_(0.3)
        elif "b_dec" in name:
            place.copy_(torch.linspace(-0.3, 0.3, place.numel()).view_as(place))
    sae.metadata = {"model_name": "EleutherAI/pythia-70m-deduped", "hook_name": "blocks.3.hook_resid_post"}
    return sae


def activations() -> Tensor:
    return 2 * torch.randn(4, 10, D, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale", "none"])
@pytest.mark.parametrize("architecture", SYSTEMS)
@torch.no_grad()
def test_codes_and_reconstructions(architecture: str, normalize: str) -> None:
    sae, x = made(architecture, normalize), activations()
    theirs = SAEBenchSAE(sae)
    code, stats = sae.encode_with_stats(x)
    f = theirs.encode(x)
    assert f.shape == (4, 10, sae.d_sae)
    assert torch.equal(f, code.dense(sae.d_sae))
    assert torch.allclose(theirs.decode(f), sae.decode(code, stats), atol=1e-5)
    assert torch.allclose(theirs(x), sae(x), atol=1e-5)
    # What evaluations do: a feature switched off, another one added.
    edited = f.clone()
    used = int(code.ids[0, 0, 0])
    edited[..., used] = 0
    without = code.replace(values=torch.where(code.ids == used, 0, code.values))
    assert torch.allclose(theirs.decode(edited), sae.decode(without, stats), atol=1e-5)
    last = sae.d_sae - 1
    edited[..., last] += 1
    difference = theirs.decode(edited) - sae.decode(without, stats)
    direction = stats.std * sae.W_dec[last] if normalize != "none" else sae.W_dec[last].expand_as(x)
    assert torch.allclose(difference, direction, atol=1e-4)


@torch.no_grad()
def test_units_of_the_activations() -> None:
    sae, x = made("tree", "layer_norm"), activations()
    own, effective = DenseSAE(sae), DenseSAE(sae, units="activations")
    std = x.std(-1, keepdim=True)
    assert torch.allclose(effective.encode(x), own.encode(x) * std, rtol=1e-4)
    assert torch.allclose(effective.decode(effective.encode(x)), own.decode(own.encode(x)), atol=1e-5)
    assert torch.allclose(effective(x), sae(x), atol=1e-5)


def test_codes_of_other_activations_are_refused_where_they_are_normalized() -> None:
    x = activations()
    for normalize in ("layer_norm", "constant_norm_rescale"):
        theirs = DenseSAE(made("topk", normalize))
        f = theirs.encode(x)
        with pytest.raises(InputError, match=r"codes of \[2, 10\] activations"):
            theirs.decode(f[:2])
        with pytest.raises(InputError, match="not those of the latest encode"):
            DenseSAE(made("topk", normalize)).decode(f)
    wide = build(TopKConfig((48,), (6,), normalize_target="none"), x.shape[-1], d_out=7)
    with pytest.raises(InputError, match="a transcoder reads other activations"):
        DenseSAE(wide, "activations")
    plain = DenseSAE(made("topk", "none"))
    assert torch.equal(plain.decode(plain.encode(x)[:2]), plain.decode(plain.encode(x))[:2])


def test_what_saebench_reads_of_it() -> None:
    theirs = SAEBenchSAE(made("tree", "layer_norm"))
    cfg = theirs.cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == (
        "pythia-70m-deduped",
        "blocks.3.hook_resid_post",
        3,
    )
    assert (cfg.d_in, cfg.d_sae, cfg.architecture, cfg.dtype) == (D, 48, "tree", "float32")
    assert json.loads(json.dumps(cfg.to_dict())) == json.loads(json.dumps(asdict(cfg)))
    assert (theirs.W_enc.shape, theirs.W_dec.shape) == ((D, 48), (48, D))
    assert (theirs.b_enc.shape, theirs.b_dec.shape) == ((48,), (D,))
    half = theirs.to(dtype=torch.bfloat16)
    assert (half.dtype, half.encode(activations().bfloat16()).dtype) == (torch.bfloat16, torch.bfloat16)
    assert half.sae.parent.dtype == torch.int64


def test_the_saes_of_folders(tmp_path: Path, finished_run: Path) -> None:
    ((name, tree),) = selected_saes(finished_run)
    assert (name, tree.cfg.architecture, tree.cfg.hook_layer) == ("tree", "tree", 1)
    hsae = made("hsae", "layer_norm")
    assert isinstance(hsae, HSAE)
    save_sae(hsae, tmp_path / "hsae")
    write_saebench(hsae, tmp_path / "export")
    for source, first in ((tmp_path / "hsae", "hsae"), (tmp_path / "export", "hsae")):
        found = selected_saes(source)
        assert [name for name, _ in found] == [first, *(f"{first}_level_{i}" for i in range(3))]
    assert [name for name, _ in selected_saes(tmp_path / "hsae", levels=False)] == ["hsae"]
    x = activations()
    code, stats = hsae.encode_with_stats(x)
    for i, (_, level) in enumerate(found[1:]):
        assert torch.equal(level.encode(x), code.dense(hsae.d_sae)[..., hsae.level(i)])
        assert torch.allclose(level(x), hsae.decode(code, stats, i), atol=1e-5)
    assert "pip install --no-deps saeforest" in (tmp_path / "export" / "requirements.txt").read_text()
    (again,) = (tmp_path / "export" / "saes").iterdir()
    assert torch.equal(saeforest.load(again).encoder, hsae.encoder)


def test_what_is_not_known_must_be_given() -> None:
    sae = made("topk", "none")
    sae.metadata = {}
    with pytest.raises(InputError, match="model_name: not in the SAE's metadata"):
        SAEBenchSAE(sae)
    with pytest.raises(InputError, match=r"hook_layer: cannot be told from the site 'encoder\.out'"):
        SAEBenchSAE(sae, model_name="gpt2", hook_name="encoder.out")
    given = SAEBenchSAE(sae, model_name="gpt2", hook_name="encoder.out", hook_layer=2)
    assert given.cfg.hook_layer == 2
    wide = build(TopKConfig((48,), (6,), normalize_activations="none", normalize_target="none"), D, d_out=7)
    with pytest.raises(InputError, match="a transcoder"):
        SAEBenchSAE(wide, model_name="gpt2", hook_name="blocks.1.hook_resid_post")
