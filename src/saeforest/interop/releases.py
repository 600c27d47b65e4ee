"""SAELens' names of SAEs: a release and an id in it, which its list of releases turns into a place on the Hub.

The list is `pretrained_saes.yaml` of an installed SAELens, which is not imported, or the file that the environment
variable SAEFOREST_SAELENS_RELEASES names. Only the part about one release is parsed: the whole has 14,000 SAEs.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from ..errors import InputError
from ..files import read_bytes
from ..schema import listed, shown

VARIABLE = "SAEFOREST_SAELENS_RELEASES"
_NAME = re.compile(r"(?P<release>[\w.-]+):(?P<id>.+)")
_LIST = "pretrained_saes.yaml"
# What SAELens converts SAEs with, where the layout on the Hub is one that is read here.
_READ = (None, "gemma_2", "gemma_2_transcoder", "gemma_3", "dictionary_learning_1", "sparsify")


# What a release may say of its SAEs in place of their own files: on what they were trained, not what they compute.
_ABOUT = (
    "model_name", "hook_name", "hook_name_out", "dataset_path", "context_size", "prepend_bos",
    "model_from_pretrained_kwargs", "neuronpedia_id",
)  # fmt: skip


class Released(NamedTuple):
    """An SAE of a release.

    source: its name for `load`. scale: factor on activations that SAELens folds in.
    about: what the list says of its training in place of its own file.
    """

    source: str
    scale: float | None
    about: Mapping[str, Any] = MappingProxyType({})


def released(name: str) -> Released | None:
    """The SAE that `RELEASE:ID` stands for; None if `name` does not have that form.

    Raises InputError where there is no list of releases, no such release or id in it, or its layout is not read here.
    """
    found = _NAME.fullmatch(name)
    if found is None or "/" in found["release"]:
        return None
    release, path = found["release"], _list()
    if path is None:
        raise InputError(
            f"{name}: no such folder. For the id of a SAELens release, install sae-lens beside saeforest, or name its "
            f"{_LIST} in {VARIABLE}; for an SAE on the Hub, give org/repo:folder"
        )
    entry = _entry(path, release)
    loader = entry.get("conversion_func")
    if loader not in _READ:
        raise InputError(
            f"{name}: SAELens reads this release with '{loader}', a layout that is not read here"
        )
    saes = entry.get("saes")
    ids = (
        {str(sae["id"]): sae for sae in saes if isinstance(sae, dict) and "id" in sae}
        if isinstance(saes, list)
        else {}
    )
    if found["id"] not in ids:
        raise InputError(f"{name}: no such id in this release of {path}; it has {listed(ids)}")
    sae = ids[found["id"]]
    scale = sae.get("norm_scaling_factor")
    folder = str(sae.get("path", "")).removesuffix("/params.npz").strip("/.")
    source = f"{entry.get('repo_id')}:{folder}" if folder else str(entry.get("repo_id"))
    return Released(source, float(scale) if isinstance(scale, int | float) else None, _about(name, entry))


def _about(name: str, entry: Mapping[str, object]) -> dict[str, Any]:
    """What a release says of its SAEs. Raises InputError where it changes what they compute."""
    given = entry.get("config_overrides") or {}
    if not isinstance(given, dict):
        raise InputError(
            f"{name}: 'config_overrides' of the release is {shown(given)}: expected keys with values"
        )
    if others := given.keys() - set(_ABOUT):
        raise InputError(
            f"{name}: the release replaces {listed(others)} of the SAE's own file, which is not done here; expected "
            f"some of {', '.join(_ABOUT)}"
        )
    return given


def _list() -> Path | None:
    if given := os.environ.get(VARIABLE):
        return Path(given)
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _LIST
    return path if path.is_file() else None


def _entry(path: Path, release: str) -> Mapping[str, object]:
    """The part of the list about a release."""
    text = read_bytes(path).decode("utf-8", "replace")
    found = re.search(rf"^{re.escape(release)}:\n(?:[ -].*\n|\n)*", text + "\n", re.MULTILINE)
    if found is None:
        names = re.findall(r"^([\w.-]+):", text, re.MULTILINE)
        close = [name for name in names if release in name] or names
        raise InputError(f"release {shown(release)}: not in {path}; it has {listed(close)}")
    try:
        entry = yaml.safe_load(found[0])[release]
    except (yaml.YAMLError, KeyError, TypeError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("repo_id"), str):
        raise InputError(
            f"{path}: release {shown(release)} has no 'repo_id'; expected SAELens' list of releases"
        )
    return entry
