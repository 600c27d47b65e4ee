"""SAEBench's environment, made once as those of the peers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.environments import RECIPES, Recipe, python_of

#: What core and absorption need. pip can resolve all that SAEBench asks for, but what comes then is 2.8 GB, with a
#: torchvision that does not fit torch's CPU build, so that transformers cannot be imported. A pyarrow of 26 or later
#: needs numpy 2, which SAEBench does not allow.
RECIPES["sae-bench"] = Recipe(
    "0.6.0",
    (
        *("sae-lens==6.54.12", "transformer-lens==3.9.0", "datasets<4", "numpy<2", "pyarrow<26", "pandas<3"),
        *("scikit-learn", "einops", "jaxtyping", "beartype", "matplotlib", "plotly", "pydantic", "seaborn"),
        *("tabulate", "tqdm"),
    ),
)


def saebench_python(say: Callable[[str], None] = print) -> Path:
    """The interpreter to run SAEBench with. Raises EnvironmentFailure."""
    return python_of("sae-bench", "cpu", say)
