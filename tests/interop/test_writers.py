"""Every system through every layout of weights: what is written is read with the same bits, or refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import saeforest
from oracles.released import released_forward
from saeforest.errors import InputError
from saeforest.interop.writers import WRITERS
from saeforest.saes import (
    HSAE,
    SAE,
    SYSTEMS,
    MatryoshkaConfig,
    TopKConfig,
    TreeConfig,
    build,
)

D = 12
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tree": ((8, 16, 24), (3, 3, 3)),
    "hsae": ((8, 16, 24), (3, 3, 3)),
    "expert_hsae": ((8, 24), (3, 3)),
    "matryoshka": ((8, 40), (6,)),
}


def config(architecture: str, **settings: Any) -> Any:
    default: Any = SYSTEMS[architecture].config_class()
    sizes, k = SIZES.get(architecture, ((48,), (6,)))
    return replace(
        default, **{"normalize_activations": "layer_norm", **settings}, layer_sizes=sizes, k_per_layer=k
    )


def systems() -> dict[str, Any]:
    """All systems as they are by default but for sizes, and with the settings that a layout may need."""
    by_default = {
        name: config(name, **({"subspace": 2} if name == "expert_hsae" else {})) for name in SYSTEMS
    }
    return by_default | {
        "matryoshka": config("matryoshka", selection="batch"),
        "matryoshka by token": config("matryoshka", selection="token"),
        "topk, none": config("topk", normalize_activations="none", encoder_bias=True),
        "matryoshka by token, none": config("matryoshka", selection="token", normalize_activations="none"),
        "relu": config("jumprelu", encoder_bias=False, threshold_init=0.0),
        "closed tree": config("tree", selection="closed"),
        "hsae, none": config("hsae", normalize_activations="none"),
    }


#: Which systems have a counterpart in a layout; all others are refused.
CLAIMED = {
    "saebench": set(systems()),
    "saelens": {
        "topk", "batchtopk", "matryoshka", "jumprelu", "matching_pursuit", "hsae", "matryoshka by token", "topk, none",
        "matryoshka by token, none", "relu", "hsae, none",
    },
    "sparsify": {"topk, none", "matryoshka by token, none"},
    "tree-sae": {"tree", "topk", "matryoshka by token", "matching_pursuit", "relu"},
}  # fmt: skip
SAME_BITS = {"encoder", "decoder", "b_enc", "b_dec", "threshold", "parent"}


@torch.no_grad()
def made(name: str) -> SAE:
    sae = build(systems()[name], D, seed=1)
    rng = torch.Generator().manual_seed(0)
    for key, place in sae.tensors().items():
        if key == "threshold" and name != "relu":
            place.fill_(0.3)
        elif "b_dec" in key and name != "matching_pursuit":
            place.copy_(0.2 * torch.randn(place.shape, generator=rng))
    sae.metadata = {"model_name": "gpt2", "hook_name": "blocks.5.hook_resid_post"}
    return sae


def folders(out: Path) -> list[Path]:
    """The folders of SAEs in an export, levels in order."""
    return sorted({path.parent for path in out.rglob("*.safetensors")})


def test_every_writer_says_what_it_claims() -> None:
    assert WRITERS.keys() == CLAIMED.keys()


@pytest.mark.parametrize("layout", CLAIMED)
@pytest.mark.parametrize("name", systems())
@torch.no_grad()
def test_round_trip(name: str, layout: str, tmp_path: Path) -> None:
    sae, out = made(name), tmp_path / "out"
    if name not in CLAIMED[layout]:
        with pytest.raises(InputError) as info:
            WRITERS[layout](sae, out)
        assert sae.config.architecture in str(info.value) or "normalize_activations" in str(info.value)
        assert "\n" not in str(info.value)
        assert list(tmp_path.iterdir()) == []
        return
    done = WRITERS[layout](sae, out)
    about = json.loads((out / "saeforest-export.json").read_text())
    assert about["format"] == layout
    assert about.get("loss") == done.about.get("loss")
    found = folders(out)
    x = 2 * torch.randn(100, D, generator=torch.Generator().manual_seed(3)) + 0.1
    code, stats = sae.encode_with_stats(x)
    f = code.dense(sae.d_sae)
    for level, folder in enumerate(found):
        again = saeforest.load(folder)
        assert again.metadata["hook_name"] == "blocks.5.hook_resid_post"
        if isinstance(sae, HSAE) and layout == "saelens":
            mine = sae.level(level)
            wanted = {
                "encoder": sae.encoder[mine],
                "decoder": sae.decoder[mine],
                "b_dec": sae.level_bias(level),
                "threshold": sae.threshold[mine],
            }
            codes, x_hat = f[:, mine], sae.decode(code, stats, level)
        else:
            assert len(found) == 1
            wanted = {key: t for key in SAME_BITS if isinstance(t := getattr(sae, key, None), Tensor)}
            if "threshold" not in sae.tensors():
                wanted.pop("threshold", None)
            codes, x_hat = f, sae.decode(code, stats)
        for key, tensor in wanted.items():
            assert torch.equal(getattr(again, key), tensor), key
        assert torch.equal(again.encode(x).dense(again.d_sae), codes)
        loss = 2e-4 if done.about.get("loss") else 1e-6
        assert torch.allclose(again(x), x_hat, atol=loss)
    with pytest.raises(InputError, match="holds an export already"):
        WRITERS[layout](sae, out)
    WRITERS[layout](sae, out, force=True)


@pytest.mark.parametrize("name", sorted(CLAIMED["tree-sae"]))
@torch.no_grad()
def test_the_authors_code_makes_the_same_of_their_layout(name: str, tmp_path: Path) -> None:
    sae = made(name)
    WRITERS["tree-sae"](sae, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = {key: t.numpy() for key, t in load_file(tmp_path / "out" / "sae.safetensors").items()}
    x: Tensor = 2 * torch.randn(100, D, generator=torch.Generator().manual_seed(3)) + 0.1
    f, x_hat = released_forward(about, tensors, x.numpy())
    assert torch.allclose(sae.encode(x).dense(sae.d_sae).double(), torch.from_numpy(f), atol=1e-5)
    assert torch.allclose(sae(x).double(), torch.from_numpy(x_hat), atol=2e-4)


def test_options_that_the_layouts_have_no_place_for(tmp_path: Path) -> None:
    wide: dict[str, Any] = {"normalize_activations": "none", "normalize_target": "none"}
    refused: tuple[tuple[str, SAE, str], ...] = (
        ("tree-sae", build(config("topk", encoder_bias=True), D), "encoder bias"),
        (
            "tree-sae",
            build(TreeConfig((8, 8), (2, 2), reads="residual"), D),
            "options that the paper does not have",
        ),
        (
            "tree-sae",
            build(config("jumprelu", encoder_bias=False, threshold_init=0.1), D),
            "thresholds",
        ),
        ("tree-sae", build(TopKConfig((48,), (6,), **wide), D, d_out=7), "is a transcoder"),
        ("tree-sae", build(MatryoshkaConfig((8, 40), (6,), selection="batch"), D), "by batch"),
        ("saelens", build(config("tree"), D), "import saeforest.interop.saelens"),
        ("saelens", build(TopKConfig((48,), (6,), **wide), D, d_out=D), "take it for an SAE of its input"),
        (
            "saelens",
            build(TopKConfig((48,), (6,), normalize_activations=0.5), D),
            "by 0.5 has no counterpart",
        ),
    )
    for layout, sae, words in refused:
        if "encoder bias" in words:
            with torch.no_grad():
                sae.b_enc.data += 1
        with pytest.raises(InputError, match=words):
            WRITERS[layout](sae, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
