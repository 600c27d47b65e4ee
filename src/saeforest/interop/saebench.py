"""SAEs of every system as SAEBench and sae-probes take them: a list of names and objects with dense codes.

    from saeforest.interop.saebench import selected_saes

    saes = selected_saes("runs/mine", device="cuda")  # [(name, object)]: all SAEs of the run, and the levels of HSAEs
    core.run_eval(config, saes, "cuda", "results")    # any evaluation of sae_bench.evals
    run_sae_evals(saes[0][1], model_name=..., hook_name=..., ...)  # sae_probes

Nothing here imports either of them. SAEBench asks for numpy below 2, which saeforest does not: an export has the list
of packages that let its environment read SAEs all the same.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..run_folder import RunFolder
from ..saes import HSAE, SAE, save_sae
from ..schema import shown
from .dense import DenseSAE, Units
from .exports import Exported, export_folder, write_hierarchy
from .loading import load
from .saelens_flat import levels_of

SAES, REQUIREMENTS = "saes", "requirements.txt"
_LAYER = re.compile(r"(?:blocks|layers|h)\.(\d+)(?:\.|$)")
#: What reading SAEs takes of saeforest's requirements, for an environment whose numpy is older than its own.
_NEEDED = ("jaxtyping", "pydantic>=2.10", "pyyaml", "safetensors", "xxhash", "rich", "gguf")


@dataclass
class SAEBenchConfig:
    """The configuration that SAEBench reads of an SAE: the fields of its CustomSAEConfig."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None = None
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = ""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The configuration for SAEBench's results, ready for JSON."""
        return asdict(self)


class SAEBenchSAE(DenseSAE):
    """An SAE of any system with what SAEBench asks of one: dense codes, weights, `cfg`, `device` and `dtype`.

    units: whether codes are in the units of the SAE, or multiplied by the deviation of their activation
        (docs/spec/activations.md#units).

    Raises InputError for a transcoder, and where model, site or layer are not known and not given.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        model_name: str | None = None,
        hook_name: str | None = None,
        hook_layer: int | None = None,
        units: Units = "sae",
    ) -> None:
        super().__init__(sae, units)
        if sae.is_transcoder:
            raise InputError("a transcoder: SAEBench evaluates SAEs that reconstruct what they read")
        about = sae.metadata
        model, hook = model_name or about.get("model_name"), hook_name or about.get("hook_name")
        for name, value in (("model_name", model), ("hook_name", hook)):
            if not isinstance(value, str):
                raise InputError(f"{name}: not in the SAE's metadata; give it")
        if hook_layer is None:
            found = _LAYER.search(str(hook))
            if found is None:
                raise InputError(f"hook_layer: cannot be told from the site {shown(hook)}; give it")
            hook_layer = int(found[1])
        self.cfg = SAEBenchConfig(
            model_name=str(model).rsplit("/", 1)[-1],
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            hook_layer=hook_layer,
            hook_name=str(hook),
            context_size=about.get("context_size"),
            architecture=sae.config.architecture,
            prepend_bos=bool(about.get("prepend_bos", False)),
            dtype=str(sae.encoder.dtype).removeprefix("torch."),
            dataset_path=str(about.get("dataset_path", "")),
            training_tokens=tokens if isinstance(tokens := about.get("tokens"), int) else -100_000,
        )


def selected_saes(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    levels: bool = True,
    **options: Any,
) -> list[tuple[str, SAEBenchSAE]]:
    """The SAEs of a run, of an export of `saeforest export saebench`, or one that `saeforest.load` reads, by name.

    levels: whether the levels of an HSAE come too, each as an SAE of its own: the HSAE reconstructs by the last alone.
    options: `model_name`, `hook_name`, `hook_layer` and `units` of `SAEBenchSAE`.
    """
    found: list[tuple[str, SAE]] = []
    for name, sae in _saes(source):
        found.append((name, sae))
        if levels and isinstance(sae, HSAE):
            found += [(f"{name}_level_{i}", level) for i, level in enumerate(levels_of(sae))]
    return [(name, SAEBenchSAE(sae.to(device, dtype), **options).eval()) for name, sae in found]


def _saes(source: str | Path) -> list[tuple[str, SAE]]:
    path = Path(source)
    if (run := RunFolder(path)).config_file.is_file():
        return [(name, run.load(name, "cpu")[1]) for name in run.names()]
    if (path / SAES).is_dir():
        return [(folder.name, load(folder)) for folder in sorted((path / SAES).iterdir())]
    return [(path.name, load(source))]


def write_saebench(sae: SAE, out: Path, *, force: bool = False) -> Exported:
    """Write an SAE, and the packages that SAEBench's environment needs to read it: see `selected_saes`.

    Raises InputError for a transcoder, and if `out` holds anything else than an earlier export.
    """
    cfg = SAEBenchSAE(sae).cfg
    about: dict[str, Any] = {"model": cfg.model_name, "hook": cfg.hook_name, "architecture": cfg.architecture}
    with export_folder(out, "saebench", sae, about, force=force) as folder:
        (folder / SAES).mkdir()
        save_sae(sae, folder / SAES / cfg.architecture)
        how = "# pip install -r requirements.txt && pip install --no-deps saeforest\n"
        (folder / REQUIREMENTS).write_text(how + "\n".join(_NEEDED) + "\n", encoding="utf-8")
        write_hierarchy(folder, sae.forest)
    return Exported(out, about)
