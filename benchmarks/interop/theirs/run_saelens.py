"""Loads SAEs with SAELens and compares what it makes of activations with what lies beside them.

PYTHON_WITH_SAE_LENS -m benchmarks.interop.theirs.run_saelens plain FOLDER ...
PYTHON_WITH_SAE_LENS -m benchmarks.interop.theirs.run_saelens plugin HUB_CACHE REPO FOLDER ...
PYTHON_WITH_SAE_LENS -m benchmarks.interop.theirs.run_saelens pushed ENDPOINT TOKEN HUB_CACHE REPO FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from .common import EXPECTED, differences


def plain(folders: list[str]) -> dict[str, list[float]]:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    found = {}
    for folder in folders:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning on loading is a finding too
            sae = SAE.load_from_disk(folder)
        found[folder] = differences(Path(folder), sae.encode, sae.decode)
    return found


def plugin(repo: str, folders: list[str]) -> dict[str, dict[str, Any]]:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    from saeforest.interop import saelens

    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        name = Path(folder).name
        loaded = [
            SAE.load_from_disk(folder),
            SAE.load_from_disk(folder, converter=saelens.converter),
            SAE.from_pretrained(repo, name),
            SAE.from_pretrained(repo, name, converter=saelens.hub_converter),
        ]
        halved = [
            SAE.load_from_disk(folder, dtype="bfloat16"),
            SAE.load_from_disk(folder, dtype="bfloat16", converter=saelens.converter),
            SAE.from_pretrained(repo, name, dtype="bfloat16"),
        ]
        exact = all(torch.equal(sae.parent, loaded[1].parent) for sae in (*loaded, *halved))
        exact &= all(sae.W_enc.dtype == torch.bfloat16 for sae in halved)
        pairs = [differences(Path(folder), sae.encode, sae.decode) for sae in loaded]
        x = torch.load(Path(folder) / EXPECTED, weights_only=True)["x"]
        with torch.no_grad():
            before = loaded[0].encode(x)
            loaded[0].fold_W_dec_norm()
            exact &= torch.equal(loaded[0].encode(x), before)
            _, cache = loaded[0].run_with_cache(x)
            exact &= torch.equal(cache["hook_sae_acts_post"], before)
        loaded[0].save_model(Path(folder) / "again")
        found[folder] = {"differences": pairs, "exact": bool(exact)}
    return found


def pushed(repo: str, folder: str) -> dict[str, Any]:
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    from saeforest.interop import saelens

    loaded = [
        SAE.from_pretrained(repo, "sae"),
        SAE.from_pretrained(repo, "sae", converter=saelens.hub_converter),
    ]
    pairs = [differences(Path(folder), sae.encode, sae.decode) for sae in loaded]
    return {"differences": pairs, "parent": loaded[0].parent.tolist()}


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "pushed":
        # Read when the Hub's client is imported.
        names = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE")
        os.environ |= dict(zip(names, arguments, strict=False)) | {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        print(json.dumps(pushed(*arguments[len(names) :])))
    elif command == "plugin":
        os.environ["HF_HUB_CACHE"] = arguments[0]
        print(json.dumps(plugin(arguments[1], arguments[2:])))
    else:
        print(json.dumps(plain(arguments)))
