"""Hierarchical sparse autoencoders on the activations of language models: train, measure and explore them.

    import saeforest

    run = saeforest.train(x, "tree", layer_sizes=(64, 192), k_per_layer=(4, 2))    # x [n, d]
    saeforest.measure(run, x_held_out)["reconstruction"].value["fve"]
    code = run.sae.encode(x)                                                       # SparseCode
    run.sae.forest.children(3)
    saeforest.save(run.sae, "my-sae")

What is public is what `dir(saeforest)` lists. Everything is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from . import _environment as _environment  # before PyTorch
from .errors import InputError

if TYPE_CHECKING:
    from .api.measure import measure
    from .api.others import compare, infer_forest, save, synthetic
    from .api.steer import steer
    from .api.train import TrainedRun, train
    from .interop import load
    from .lm import load_lm
    from .measures.record import Record
    from .release import push
    from .run_folder import RunFolder
    from .saes import SAE
    from .sparse_code import SparseCode
    from .structure.forest import Forest

__all__ = [
    "SAE",
    "Forest",
    "InputError",
    "Record",
    "RunFolder",
    "SparseCode",
    "TrainedRun",
    "__version__",
    "compare",
    "infer_forest",
    "load",
    "load_lm",
    "measure",
    "push",
    "save",
    "steer",
    "synthetic",
    "train",
]

_MODULES = {
    "SAE": ".saes",
    "Forest": ".structure.forest",
    "Record": ".measures.record",
    "RunFolder": ".run_folder",
    "SparseCode": ".sparse_code",
    "TrainedRun": ".api.train",
    "compare": ".api.others",
    "infer_forest": ".api.others",
    "load": ".interop",
    "load_lm": ".lm",
    "measure": ".api.measure",
    "push": ".release",
    "save": ".api.others",
    "steer": ".api.steer",
    "synthetic": ".api.others",
    "train": ".api.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'saeforest' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return __all__
