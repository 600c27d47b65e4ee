"""How the training settings of the SAEs in a report differ from the papers'."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..config import TrainConfig, to_dict
from ..presets import PRESETS
from .load import flatten
from .papers import papers
from .seed_groups import SeedGroup
from .system import kind_of, whole

# Settings that matter other than those of SAE and optimizer; and settings of SAE and optimizer that do not.
_SHARED = ("model", "site", "tokens", "epochs")
_POSITIONS = ("exclude_first", "exclude_special", "max_norm")
_NO_MATTER = ("precision", "state", "architecture")


class Deviations(NamedTuple):
    """The label of an SAE, the nearest preset of a paper, and the settings that differ from it, as text."""

    label: str
    preset: str
    reads: str
    sae: str
    optim: str


def deviations(groups: Iterable[SeedGroup]) -> list[Deviations]:
    """How each SAE differs from the nearest one in a paper. SAEs without a counterpart in a paper are left out."""
    found = []
    for group in groups:
        if (preset := _nearest(group)) is not None:
            parts = (_of_interest(config) for config in (group.first.config, PRESETS[preset]))
            differing = [_differing(ours, theirs) for ours, theirs in zip(*parts, strict=True)]
            found.append(Deviations(group.label, preset, *differing))
    return found


def _differing(ours: dict[str, str], theirs: dict[str, str]) -> str:
    return "; ".join(
        f"{key} {ours.get(key, 'absent')} ({theirs.get(key, 'absent')})"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    )


def _nearest(group: SeedGroup) -> str | None:
    """The papers' preset of the same system and number of layers that is nearest in L0, then in size."""
    sae, kind = group.first.config.sae, group.system.kind

    def far(name: str) -> tuple[int, int, str]:
        of = PRESETS[name].sae
        return (
            abs(sum(of.k_per_layer) - sum(sae.k_per_layer)),
            abs(sum(of.layer_sizes) - sum(sae.layer_sizes)),
            name,
        )

    of_papers: dict[str, list[str]] = {}
    for name in (name for paper in papers().values() for name in paper.presets):
        if len(PRESETS[name].sae.layer_sizes) == len(sae.layer_sizes):
            of_papers.setdefault(kind_of(PRESETS[name]), []).append(name)
    # An ablation without a preset of its own is compared with the preset of the whole system.
    return min(of_papers.get(kind) or of_papers.get(whole(kind), ()), key=far, default=None)


def _of_interest(config: TrainConfig) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Settings as text by key: those of the data, the SAE and the optimizer."""
    whole: dict[str, Any] = to_dict(config)
    reads = {
        **{key: whole[key] for key in _SHARED},
        "context": whole["text"]["context"],
        **{key: whole["activations"][key] for key in _POSITIONS},
    }
    reads, sae, optim = (
        {key: _text(value) for key, value in flatten(part).items() if key not in _NO_MATTER}
        for part in (reads, whole["sae"], whole["optim"])
    )
    return reads, sae, optim


def _text(value: str) -> str:
    """A value as in a configuration file, with numbers in short form."""
    if value in ("None", "True", "False"):
        return {"None": "null", "True": "true", "False": "false"}[value]
    try:
        return f"{float(value):g}" if "." in value or "e" in value else f"{int(value):,}"
    except ValueError:
        return value
