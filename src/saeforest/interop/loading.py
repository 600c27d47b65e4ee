"""Any SAE that is read, wherever it is and whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..saes import SAE, load_sae
from ..saes.files import CFG, SAE_FOLDER, WEIGHTS
from ..schema import listed
from . import gemma_scope, tree_sae
from .saelens_folder import is_saelens, load_saelens

_EXPECTED = (
    f"expected a run, {CFG} and {WEIGHTS} (of saeforest or SAELens), {gemma_scope.NPZ} or {gemma_scope.SAFETENSORS} "
    f"(Gemma Scope), or {tree_sae.CONFIG} and {tree_sae.WEIGHTS} (the Tree SAE's authors)"
)


def load(source: str | Path, *, revision: str | None = None, activation_scale: float | None = None) -> SAE:
    """A trained SAE, on the CPU in float32 and ready to encode.

    source: a folder, or a name on the Hugging Face Hub: `org/repo`, or `org/repo:name` for one of several SAEs there
        (its name in a run that `saeforest push` uploaded, or its folder). What was downloaded before is used without
        asking the Hub. The folder is a run (which trained one SAE), an SAE that this library saved, one that SAELens
        saved, one of Gemma Scope, or one that the Tree SAE's authors released.
    revision: a branch, tag or commit of the repository on the Hub; `org/repo@revision:name` means the same. Default:
        its newest state.
    activation_scale: factor on activations for a SAELens SAE that was trained with `expected_average_only_in` and does
        not hold it. Otherwise leave it out.

    Codes and reconstructions are those of the code that wrote the SAE; docs/load.md says which architectures are read,
    and as what. An SAE that learned no forest has one in which every feature hangs from the root: `saeforest infer`
    and `saeforest.infer_forest` find parents for its features.

    Raises InputError, a ValueError, where there is no SAE or not one alone, where it has an architecture or option
    that has no counterpart here, and where a file, key, tensor or shape is missing or wrong.

    Example:
        >>> import tempfile, torch, saeforest
        >>> x = torch.randn(500, 8)
        >>> run = saeforest.train(x, "topk", layer_sizes=16, k_per_layer=2, steps=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saeforest.save(run.sae, folder + "/sae")
        ...     sae = saeforest.load(folder + "/sae")
        >>> code = sae.encode(x)  # values and ids of the active features, [n, k]
        >>> sae(x).shape  # the reconstruction, [n, d_in]; of a transcoder [n, d_out]
        torch.Size([500, 8])

    A name on the Hub is, for instance, `jbloom/GPT2-Small-SAEs-Reformatted:blocks.8.hook_resid_pre`.
    """
    return load_folder(_local(source, revision), activation_scale=activation_scale)


def load_folder(folder: Path, *, activation_scale: float | None = None) -> SAE:
    """The SAE in a folder, whichever layout it has: see `load`."""
    if is_saelens(folder):
        return load_saelens(folder, activation_scale=activation_scale)
    if activation_scale is not None:
        raise InputError(
            f"activation_scale = {activation_scale}: {folder} is no SAELens folder, and no other lacks it; leave it out"
        )
    names = {path.name for path in folder.iterdir()}
    if CFG in names or SAE_FOLDER in names:
        return load_sae(folder)
    if not names.isdisjoint((gemma_scope.NPZ, gemma_scope.SAFETENSORS)):
        return gemma_scope.load_gemma_scope(folder)
    if not names.isdisjoint((tree_sae.CONFIG, tree_sae.WEIGHTS)):
        return tree_sae.load_tree_sae(folder)
    if several := _below(folder):
        raise InputError(f"{folder}: holds several SAEs; give one of its folders: {listed(several)}")
    raise InputError(f"{folder}: holds no SAE; {_EXPECTED}")


def _local(source: str | Path, revision: str | None) -> Path:
    """The folder that `source` is, or stands for on the Hub."""
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"revision = {revision}: {source} is a folder, which has no revisions; leave it out"
            )
        return path
    if path.exists():
        raise InputError(f"{source}: not a folder; give the folder of the SAE")
    if isinstance(source, str):
        from .hub import fetch, hub_sae  # the Hub's client takes longer to import than an SAE to load

        if (name := hub_sae(source, revision)) is not None:
            return fetch(name)
    raise InputError(f"{source}: no such folder; {_EXPECTED}; or a name on the Hub such as org/repo:folder")


def _below(folder: Path) -> set[str]:
    """The folders in `folder` that hold an SAE."""
    files = (CFG, gemma_scope.NPZ, gemma_scope.SAFETENSORS, tree_sae.WEIGHTS)
    return {path.parent.name for file in files for path in folder.glob(f"*/{file}")}
