"""Any SAE that is read, wherever it is and whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import read_json
from ..saes import SAE
from ..saes.files import CFG
from ..schema import listed
from .readers import SAELENS, below, expected, reader_of
from .releases import Released, released
from .saelens_folder import load_saelens, of_another_model, on_hub


def load(source: str | Path, *, revision: str | None = None, activation_scale: float | None = None) -> SAE:
    """A trained SAE, on the CPU in float32 and ready to encode.

    source: a folder, or a name on the Hugging Face Hub: `org/repo`, or `org/repo:name` for one of several SAEs there
        (its name in a run that `saeforest push` uploaded, or its folder). What was downloaded before is used without
        asking the Hub. The folder is a run (which trained one SAE), an SAE that this library saved, one of
        SAELens, sparsify, dictionary_learning or Gemma Scope, or one that the Tree SAE's authors released. Or
        `release:id`, as SAELens names SAEs, if its list of releases is there (docs/load.md).
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
    if isinstance(source, str) and not Path(source).exists() and (found := released(source)) is not None:
        return _of_release(_local(found.source, revision), found, activation_scale)
    return load_folder(_local(source, revision), activation_scale=activation_scale)


def _of_release(folder: Path, found: Released, scale: float | None) -> SAE:
    """The SAE of a release, with what SAELens' list says of it."""
    if scale is None and found.scale is not None:
        # SAELens folds it in only where the file has it still to be done; older files say so by true.
        cfg = read_json(folder / CFG, constants="text") if (folder / CFG).exists() else {}
        how = cfg.get("normalize_activations") if isinstance(cfg, dict) else None
        scale = found.scale if how is True or how == "expected_average_only_in" else None
    sae = load_folder(folder, activation_scale=scale)
    known = sae.metadata.get("model_from_pretrained_kwargs")
    sae.metadata |= found.about
    if isinstance(model := found.about.get("model_name"), str):
        sae.metadata["model_name"] = on_hub(model)
    changed = found.about.get("model_from_pretrained_kwargs")
    if changed and changed != known:
        of_another_model(found.source, changed)
    return sae


def load_folder(folder: Path, *, activation_scale: float | None = None) -> SAE:
    """The SAE in a folder, whichever layout it has: see `load`."""
    reader = reader_of(folder)
    if activation_scale is not None:
        if reader is None or reader.who != SAELENS:
            raise InputError(
                f"activation_scale = {activation_scale}: {folder} is no SAELens folder, and no other lacks it; leave "
                "it out"
            )
        return load_saelens(folder, activation_scale=activation_scale)
    if reader is not None:
        return reader.load(folder)
    if several := below(folder):
        raise InputError(f"{folder}: holds several SAEs; give one of its folders: {listed(several)}")
    raise InputError(f"{folder}: holds no SAE; {expected()}")


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
    raise InputError(f"{source}: no such folder; {expected()}; or a name on the Hub such as org/repo:folder")
