"""Evaluates an SAE with SAEBench as `job.json` in a folder says, and writes what it found beside it.

PYTHON_WITH_SAE_BENCH -m benchmarks.saebench.theirs FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from . import absorption, core
from .adapter import ForestSAE
from .model import load

_CHECKED = 256


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    torch.manual_seed(0)
    job = json.loads((folder / "job.json").read_text())
    sae = ForestSAE(Path(job["sae"]), job["model_name"], job["layer"])
    ids = load_file(folder / "tokens.safetensors")["ids"].long()
    results: dict[str, Any] = {
        "versions": {name: version(name) for name in ("sae-bench", "transformer-lens", "sae-lens", "torch")}
    }
    # The blocks behind the SAE's have no say in what it is shown.
    blocks = job["layer"] + 1
    model = load(Path(job["model"]), job["model_name"], blocks)
    _write_codes(model, sae, ids, folder)
    if job["core"]:
        whole = load(Path(job["model"]), job["model_name"])
        results["core"] = core.evaluate(whole, sae, ids, job["batch"])
        del whole
        print("core: done", flush=True)
    if job["words"]:
        results["absorption"] = absorption.evaluate(model, sae, job["words"], job["seed"], folder)
        print("absorption: done", flush=True)
    (folder / "theirs.json").write_text(json.dumps(results))


@torch.no_grad()
def _write_codes(model: Any, sae: ForestSAE, ids: torch.Tensor, folder: Path) -> None:
    """Some activations, their codes and reconstructions, so that the other side can check the adapter itself."""
    hook = sae.cfg.hook_name
    _, cache = model.run_with_cache(
        ids[:2], prepend_bos=False, names_filter=[hook], stop_at_layer=sae.cfg.hook_layer + 1
    )
    x = cache[hook].flatten(0, 1)[:_CHECKED]
    f = sae.encode(x)
    tensors = {"x": x, "f": f, "x_hat": sae.decode(f)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "codes.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
