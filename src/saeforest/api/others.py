"""The shorter functions of `import saeforest`: forests, files, worlds and reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import infer
from ..errors import InputError
from ..infer import InferConfig, Method, Order
from ..run_folder import RunFolder
from ..saes import SAE, save_sae
from ..saes.files import CFG
from ..schema import shown
from ..structure.forest import Forest
from .arguments import Activations, a, activations, named_as_arguments, near, whole
from .train import TrainedRun

if TYPE_CHECKING:
    from ..worlds import World

_ROWS = 4_096


def infer_forest(
    sae: SAE,
    x: Activations,
    *,
    method: Method = "reconstruction",
    min_score: float | None = None,
    min_count: int = 20,
    min_reconstruction: float = 0.1,
    order: Order = "frequency",
) -> Forest:
    """A forest for an SAE that learned none, inferred from which features fire together.

    Every feature gets at most one parent: of the features that may be its parent and score enough, the best. The source
    of the default is section 3 of the Tree SAE paper; `saeforest.infer` has more, such as the score of every edge.

    x: activations `[n, d]` of the kind the SAE was trained on; some ten thousand of them at least.
    method: reconstruction (activation coverage, Eq. 4, and the reconstruction condition, Eq. 5), coverage alone,
        pearson, or one of the masked cosine similarities (mcs_binary, mcs_correlation, mcs_correlation_scaled,
        mcs_binary_scaled).
    min_score: the least score of a parent. Default: 0.9 for coverage and reconstruction, and a value for each other.
    min_count: a feature that fires on fewer activations hangs from the root.
    min_reconstruction: the least reconstruction score (Eq. 5), a cosine.
    order: which features may be parents: frequency, the more frequent ones; layers, those of earlier layers.

    A forest that the SAE was trained with is not looked at. Raises InputError for a wrong argument, and for activations
    of another width or with NaN or infinite values.

    Example:
        >>> import torch, saeforest
        >>> x = torch.randn(2_000, 16)
        >>> run = saeforest.train(x, "topk", layer_sizes=32, k_per_layer=4, steps=20)
        >>> forest = saeforest.infer_forest(run.sae, x)
        >>> forest.parent.shape
        torch.Size([32])
    """
    with named_as_arguments():
        if not isinstance(sae, SAE):
            raise InputError(f"sae: expected an SAE, not {a(sae)}")
        config = InferConfig(method, min_score, min_count, min_reconstruction, order)
        return infer.infer_forest(sae, activations("x", x, sae.d_in).split(_ROWS), config).forest


def save(sae: SAE, folder: str | Path) -> None:
    """Saves an SAE in a folder that `saeforest.load` reads: cfg.json and sae_weights.safetensors, in SAELens' layout.

    The folder is written whole or not at all. One that holds an SAE is replaced; any other that is not empty is left
    alone. Raises InputError for that, and OSError where the disk is full.

    Example:
        >>> import tempfile, torch, saeforest
        >>> run = saeforest.train(torch.randn(500, 8), "topk", layer_sizes=16, k_per_layer=2, steps=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saeforest.save(run.sae, folder + "/sae")
        ...     saeforest.load(folder + "/sae").d_sae
        16
    """
    if not isinstance(sae, SAE):
        raise InputError(f"sae: expected an SAE (such as run.sae), not {a(sae)}")
    folder = Path(folder)
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder}: is a file; choose a folder")
        if any(folder.iterdir()) and not (folder / CFG).is_file():
            raise InputError(f"{folder}: is not empty and holds no SAE; choose another folder")
    save_sae(sae, folder)


def synthetic(generator: str = "tree", *, seed: int = 0, **settings: Any) -> World:
    """A world of features whose true tree is known, as a source of activations to train on.

    generator: matryoshka, mp, hedging-single, hedging-four, hedging-four-unbalanced, synth-bench, tree, tree-leaning,
        tree-overlapping or tree-two-parents. The functions of `saeforest.worlds.generators` describe them, with the
        papers they come from.
    seed: random seed of the true features' directions and of the activations.
    settings: of the generator: `depth`, `branching`, `roots` and more for tree.

    The world's `forest` is the true tree, `vectors` `[m, d]` the true directions, and `held_out(n)` gives `n`
    activations that no training on it sees: `x [n, d]` and the true `code`.

    Raises InputError for a generator or a setting that there is not.

    Example:
        >>> import saeforest
        >>> world = saeforest.synthetic("tree", depth=2, branching=3, roots=4)
        >>> world.forest.layer_sizes
        (4, 12)
        >>> world.held_out(100).x.shape
        torch.Size([100, 64])
        >>> run = saeforest.train(world, layer_sizes=(4, 12), k_per_layer=(2, 2), steps=5)
    """
    from ..worlds.generators import GENERATORS, settings_of

    if generator not in GENERATORS:
        raise InputError(
            f"generator = {shown(generator)}: expected one of {', '.join(GENERATORS)}{near(generator, GENERATORS)}"
        )
    whole("seed", seed, 0)
    names = list(settings_of(generator))
    for name in settings:
        if name not in names:
            known = f"expected {', '.join(names)}" if names else "it has none"
            raise InputError(f"{name}: no setting of generator {generator}{near(name, names)}; {known}")
    return GENERATORS[generator](seed=seed, **settings)


def compare(
    runs: str | Path | RunFolder | TrainedRun | Sequence[str | Path | RunFolder | TrainedRun], out: str | Path
) -> Path:
    """Writes a report that compares runs by what was measured of them, and returns the path of its page.

    runs: runs with records, of `saeforest eval` or `saeforest.measure(run)`: folders, or what `saeforest.train`
        returned.
    out: the folder of the report, new or empty: report.html, the same in Markdown and JSON, and figures.

    Raises InputError where a folder is no run or nothing was measured, where `out` is in use, and where the packages of
    reports are not installed (`pip install 'saeforest[report]'`).

    Example (not run here):
        saeforest.compare(["runs/tree", "runs/topk"], "report")
    """
    several = [runs] if isinstance(runs, str | Path | RunFolder | TrainedRun) else [*runs]
    folders = []
    for run in several:
        if isinstance(run, TrainedRun):
            if run.folder is None:
                raise InputError(
                    "runs: a run in memory has no records; train it with out=FOLDER and measure it"
                )
            run = run.folder
        folders.append(run.path if isinstance(run, RunFolder) else Path(run))
    from ..report import compare

    compare(folders, Path(out))
    return Path(out) / "report.html"
