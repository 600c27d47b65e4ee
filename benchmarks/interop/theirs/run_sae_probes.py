"""Has sae-probes train probes on the codes of SAEs, of made activations in which one direction tells the classes apart.

PYTHON_WITH_SAE_PROBES -m benchmarks.interop.theirs.run_sae_probes EXPORT ...
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from sae_probes.generate_sae_activations import generate_sae_activations  # pyright: ignore[reportMissingImports]
from sae_probes.run_sae_evals import run_sae_eval  # pyright: ignore[reportMissingImports]
from sae_probes.utils_data import get_numbered_binary_tags, get_yvals  # pyright: ignore[reportMissingImports]

from saeforest.interop.saebench import selected_saes

from .common import D, differences

HOOK, MODEL = "blocks.5.hook_resid_pre", "gpt2"


def main(exports: list[str]) -> dict[str, Any]:
    dataset = min(get_numbered_binary_tags(), key=lambda tag: abs(len(get_yvals(tag)) - 1_500))
    y = torch.from_numpy(get_yvals(dataset))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(len(y), D, generator=rng) + 2 * y[:, None] * torch.randn(D, generator=rng)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        cache, results = Path(name) / "cache", Path(name) / "results"
        (cache / f"model_activations_{MODEL}").mkdir(parents=True)
        torch.save(x, cache / f"model_activations_{MODEL}" / f"{dataset}_{HOOK}.pt")
        shared: dict[str, Any] = {
            "dataset": dataset,
            "hook_name": HOOK,
            "setting": "normal",
            "model_name": MODEL,
            "model_cache_path": cache,
            "device": "cpu",
        }
        for export in exports:
            saes = selected_saes(export)
            pairs = [
                differences(Path(export) / "expected" / own, sae.encode, sae.decode) for own, sae in saes
            ]
            sae = saes[0][1]
            with redirect_stdout(sys.stderr):
                run_sae_eval(sae=sae, reg_type="l1", ks=[4], results_path=results, **shared)
            (file,) = results.rglob("*.json")
            (metrics,) = json.loads(file.read_text())
            file.unlink()
            codes = generate_sae_activations(sae=sae, num_train=None, frac=None, **shared)
            assert codes.X_train.shape[1] == sae.cfg.d_sae
            found[export] = {"differences": pairs, "auc": metrics["test_auc"]}
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
