"""SCR, RAVEL's intervention and unlearning by SAEBench's own functions, on the data of `benchmarks.saebench.small`.

PYTHON_WITH_SAE_BENCH -m benchmarks.saebench.theirs.small FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from sae_bench.evals.ravel.mdbm import MDBM
from sae_bench.evals.ravel.validation import evaluate_completion
from sae_bench.evals.scr_and_tpp import main as scr
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.unlearning.main import get_unlearning_scores
from sae_bench.evals.unlearning.utils.feature_activation import get_top_features
from sae_bench.evals.unlearning.utils.intervention import anthropic_clamp_resid_SAE_features
from sae_bench.evals.unlearning.utils.metrics import convert_wmdp_data_to_prompt
from sae_bench.sae_bench_utils import dataset_info
from safetensors.torch import load_file, save_file
from torch import Tensor

from .adapter import ForestSAE

# The keys under which SAEBench keeps the texts of its three probes, those of the class first.
KEYS = list(dataset_info.PAIRED_CLASS_KEYS.items())


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    given = load_file(folder / "given.safetensors")
    found: dict[str, Any] = {
        "versions": {name: version(name) for name in ("sae-bench", "sae-lens", "transformers", "torch")}
    }
    out: dict[str, Tensor] = {}
    for name in job["saes"]:
        sae = ForestSAE(folder / name, "none", 0)
        found[name] = {"scr": spurious(sae, given, job["n"], name, out)}
        out[f"{name}.swapped"] = swapped(sae, given)
        out[f"{name}.clamped"] = clamped(sae, given, job["clamped"], job["strength"])
    shares = given["forget"].double().numpy(), given["retain"].double().numpy()
    found["features"] = {
        str(threshold): get_top_features(*shares, retain_threshold=threshold).tolist()
        for threshold in job["thresholds"]
    }
    found["scores"] = [
        float(get_unlearning_scores(pd.DataFrame({"wmdp-bio": forget, "all_side_effects_mcq": retain})))
        for forget, retain in job["accuracies"]
    ]
    found["verdicts"] = [evaluate_completion("", value, said) for said, value in job["completions"]]
    found["prompts"] = [
        convert_wmdp_data_to_prompt(
            q["question"], q["choices"], permute_choices=q["order"], pre_question=q["intro"]
        )
        for q in job["questions"]
    ]
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "theirs.safetensors")
    (folder / "theirs.json").write_text(json.dumps(found))


def spurious(
    sae: ForestSAE, given: dict[str, Tensor], sizes: list[int], name: str, out: dict[str, Tensor]
) -> dict[str, Any]:
    """What `run_eval_single_dataset` does once it has activations."""
    torch.manual_seed(0)
    sides = [
        {key: given[f"{side}.{i}.{j}"] for i, keys in enumerate(KEYS) for j, key in enumerate(keys)}
        for side in ("train", "test")
    ]
    pooled = [{key: x.mean(1) for key, x in side.items()} for side in sides]
    with torch.enable_grad():
        probes, _ = probe_training.train_probe_on_activations(
            *pooled, select_top_k=None, use_sklearn=False, batch_size=16, epochs=20, lr=1e-3, perform_scr=True,
            early_stopping_patience=20, l1_penalty=1e-3,
        )  # fmt: skip
    classes = [key for key, _ in KEYS]
    torch.set_grad_enabled(False)
    # So that codes are in the units of the activations, as by default here.
    sae.effective = True
    clean = scr.get_probe_test_accuracy(probes, classes, pooled[1], 500, True)
    effects = scr.get_all_node_effects_for_one_sae(sae, probes, classes, True, sides[0], 125)
    ablated = scr.perform_feature_ablations(probes, sae, 125, sides[1], effects, sizes, classes, 500, True)
    sae.effective = False
    for i, key in enumerate(classes):
        out[f"{name}.weight.{i}"] = probes[key].net.weight.detach()[0].clone()
        out[f"{name}.bias.{i}"] = probes[key].net.bias.detach().clone()
        out[f"{name}.effects.{i}"] = effects[key]
    return {"clean": clean, "scores": scr.get_scr_plotting_dict(ablated, clean)}


def swapped(sae: ForestSAE, given: dict[str, Tensor]) -> Tensor:
    """Activations with the masked features of others, by a trained mask and, second, by one in training.

    The hook encodes the base last, so its scales are those that the object decodes with.
    """
    found = []
    mask = given["mask"]
    for training in (False, True):
        one = SimpleNamespace(sae=sae, binary_mask=mask, temperature=0.1)
        at = torch.full((len(given["base"]),), 1)
        hook = MDBM.create_intervention_hook(one, given["source"], at, training)  # pyright: ignore[reportArgumentType]
        whole = given["base"][:, None].repeat(1, 3, 1)
        found.append(hook(None, None, (whole,))[0][:, 1])
    return torch.stack(found)


def clamped(sae: ForestSAE, given: dict[str, Tensor], features: list[int], strength: float) -> Tensor:
    x = given["base"].reshape(4, -1, given["base"].shape[1]).clone()
    return anthropic_clamp_resid_SAE_features(x, None, sae, features, strength)  # pyright: ignore[reportArgumentType, reportReturnType]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
