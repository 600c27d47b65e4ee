"""Steering files of lm-evaluation-harness: a vector that `lm_eval --model steered` adds at a site of the model.

The file is read by `torch.load` there: a dict from the path of a module to its `action` ("add"), `steering_vector`,
`steering_coefficient` and `bias` (None). Paths are those in the base model, such as `layers.15`. The vector is added to
the module's output at every position, the first one too. (lm_eval 0.4, `models/hf_steered.py`.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import atomic_file
from ..interventions.edits import Edit
from ..interventions.steer import Where, check_features, reader_of
from ..lm import LanguageModel
from ..lm.hooks import ForwardPass
from ..lm.sites import Site
from ..saes import SAE
from ..saes.normalizer import Scale
from ..sparse_code import SparseCode
from ..text.ids import encode

SUFFIX = ".pt"


def save_steering(
    path: Path,
    lm: LanguageModel,
    sae: SAE,
    edit: Edit,
    *,
    prompt: str = "",
    site: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write an edit as a steering file. Returns its `hookpoint` and `norm`, the length of the vector.

    edit: one that adds a number (`add`), because the harness adds the same vector everywhere.
    prompt: where the SAE normalizes every activation by itself, a text that is typical of the tasks: the vector is
        scaled by the mean standard deviation of its activations.

    Raises InputError for any other edit, for a site that is no module's output, or if the file exists and is not to be
    replaced (`force`).
    """
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: expected a name that ends with {SUFFIX}")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; choose another name, or replace it with force")
    if edit.factor != 1 or edit.where_active or edit.low > -torch.inf or edit.high < torch.inf:
        raise InputError(
            "lm-evaluation-harness adds the same vector at every position: expected an edit by add"
        )
    check_features(sae, [edit])
    reader = reader_of(lm, sae, site)
    hookpoint = _hookpoint(lm, reader.written)
    features = torch.tensor(edit.features, device=sae.device)
    code = SparseCode(torch.full((1, len(features)), edit.plus, device=sae.device), features[None])
    with torch.no_grad():
        vector = sae.decode_change(code.to(sae.encoder.dtype), _scale(lm, sae, prompt, reader.site))[0]
    vector = vector.float().cpu() / reader.written.scale
    entry = {"action": "add", "steering_vector": vector, "steering_coefficient": 1.0, "bias": None}
    with atomic_file(path) as temporary:
        torch.save({hookpoint: entry}, temporary)
    return {"hookpoint": hookpoint, "norm": float(vector.norm())}


def _scale(lm: LanguageModel, sae: SAE, prompt: str, site: Site) -> Any:
    """The mean statistics of the activations of a text, for one activation."""
    normalizer = sae.target_normalizer or sae.normalizer
    if isinstance(normalizer, Scale):
        return normalizer.stats(torch.zeros(1, 1, device=sae.device))
    ids = torch.tensor(encode(lm.tokenizer, [prompt]) if prompt else [[]])
    if ids.shape[1] < 2:
        raise InputError(
            "prompt: this SAE normalizes every activation, so the length of the vector depends on them; give a typical "
            "text of a few words or more"
        )
    x = lm.activations(ids, site)
    keep = Where().keep(ForwardPass(ids, ids.shape), x, lm.special_ids)
    _, stats = sae.normalize(x[keep].to(sae.device))
    return type(stats)(*(part.mean(0, keepdim=True) for part in stats))


def _hookpoint(lm: LanguageModel, site: Site) -> str:
    """The path of the module in the base model. Raises InputError if the site is not the output of a module there."""
    base = lm.model.base_model
    for name, module in base.named_modules():
        if site.kind == "output" and name and module is lm.model.get_submodule(site.module_path):
            return name
    raise InputError(
        f"site {site.name}: lm-evaluation-harness changes outputs of modules in the base model; expected a site "
        "such as blocks.15.hook_resid_post"
    )
