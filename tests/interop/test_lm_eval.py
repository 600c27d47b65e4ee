"""Steering files of lm-evaluation-harness, read and applied as the harness does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm_cases import VOCAB, WIDTH, gpt2, llama, neox, one_line, tiny
from saeforest.errors import InputError
from saeforest.interop.lm_eval import save_steering
from saeforest.interventions import Where, ablate, add, set_to, steer
from saeforest.lm import LanguageModel
from saeforest.saes import SAE, TopKConfig, TreeConfig, build

SITE = "blocks.1.hook_resid_post"
PROMPT = "the cat sat on a mat"


def as_the_harness(lm: LanguageModel, path: Path, ids: Tensor) -> Tensor:
    """Logits with the vector added to the output of the module, at every position."""
    (hookpoint, info), *none = torch.load(path, weights_only=True).items()
    assert not none
    assert info.keys() == {"action", "steering_vector", "steering_coefficient", "bias"}
    assert (info["action"], info["bias"]) == ("add", None)
    module = dict(lm.model.base_model.named_modules())[hookpoint]

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        change = info["steering_coefficient"] * info["steering_vector"]
        return output + change if isinstance(output, Tensor) else (output[0] + change, *output[1:])

    with module.register_forward_hook(hook):
        return lm.logits(ids)


def an_sae(**options: Any) -> SAE:
    sae = build(TopKConfig(layer_sizes=(40,), k_per_layer=(6,), **options), WIDTH, seed=1).requires_grad_(
        False
    )
    sae.metadata = {"hook_name": SITE}
    return sae


@pytest.mark.parametrize("make", [llama, gpt2, neox])
def test_the_harness_computes_what_steering_does(make: Any, tmp_path: Path) -> None:
    lm, sae = tiny(make), an_sae(normalize_activations=0.5)
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    edit = add([3, 9], 4.0)
    said = save_steering(tmp_path / "a.pt", lm, sae, edit)
    with steer(lm, sae, [edit], Where(exclude_first=False, exclude_special=False)):
        expected = lm.logits(ids)
    torch.testing.assert_close(as_the_harness(lm, tmp_path / "a.pt", ids), expected, rtol=1e-4, atol=1e-4)
    assert said["norm"] == pytest.approx(2 * 4 * float((sae.W_dec[3] + sae.W_dec[9]).norm()), rel=1e-5)


def test_a_subtree_is_scaled_by_the_activations_of_a_text(tmp_path: Path) -> None:
    lm = tiny(llama)
    sae = build(TreeConfig(layer_sizes=(6, 34), k_per_layer=(3, 3)), WIDTH, seed=1).requires_grad_(False)
    sae.metadata = {"hook_name": SITE}
    edit = add(sae.forest.subtree(2), 1.5)
    save_steering(tmp_path / "a.pt", lm, sae, edit, prompt=PROMPT)
    x = lm.activations(torch.tensor([lm.tokenizer(PROMPT)["input_ids"]]), SITE)[0, 1:]
    expected = 1.5 * sae.W_dec[list(edit.features)].sum(0) * sae.normalize(x)[1].std.mean()
    found = torch.load(tmp_path / "a.pt", weights_only=True)["layers.1"]["steering_vector"]
    torch.testing.assert_close(found, expected)


def test_what_it_refuses(tmp_path: Path) -> None:
    lm, sae, path = tiny(llama), an_sae(normalize_activations="none"), tmp_path / "a.pt"
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (ablate(3), {}, "expected an edit by add"),
        (set_to(3, 1.0), {}, "expected an edit by add"),
        (add(40, 1.0), {}, "feature 40: expected 0 to 39"),
        (add(3, 1.0, where_active=True), {}, "expected an edit by add"),
        (add(3, 1.0), {"site": "blocks.1.hook_resid_mid"}, "trained on site"),
    ]
    for edit, options, part in cases:
        with pytest.raises(InputError) as info:
            save_steering(path, lm, sae, edit, **options)
        one_line(info, part)
    sae.metadata = {"hook_name": "blocks.1.hook_resid_pre"}
    with pytest.raises(InputError) as info:
        save_steering(path, lm, sae, add(3, 1.0))
    one_line(info, "changes outputs of modules")
    assert list(tmp_path.iterdir()) == []
