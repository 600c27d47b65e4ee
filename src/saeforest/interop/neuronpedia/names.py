"""What an SAE is called on Neuronpedia, and what its names may be there."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...errors import InputError
from ...saes import SAE
from ...schema import shown
from .config import NeuronpediaConfig

#: Characters of a model's id, of another name, and of the description of a set: what Neuronpedia takes.
MOST_MODEL, MOST_NAME, MOST_DESCRIPTION = 32, 64, 128
_MODEL_ID = re.compile(r"[a-z](?:[a-z0-9]|[-.](?=[a-z0-9]))*")
_SET_NAME = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9]))*")
_LAYER = re.compile(r"(?:blocks|layers|h)\.(\d+)(?:\.|$)")
# What Neuronpedia calls models that have another name on the Hub.
_KNOWN = {"gpt2": "gpt2-small"}
_KINDS = {"resid": "res", "mlp": "mlp", "attn": "att", "ln2": "mlp", "ln1": "att"}


class Names(NamedTuple):
    """The names of an export, checked. source: id of the source, LAYER-SET."""

    model: str
    set: str
    layer: int
    release: str
    title: str
    creator: str
    url: str

    @property
    def source(self) -> str:
        return f"{self.layer}-{self.set}"


def names_of(sae: SAE, config: NeuronpediaConfig) -> Names:
    """The names that an SAE has on Neuronpedia.

    Raises InputError where one is not what Neuronpedia accepts, or cannot be told from the SAE.
    """
    about = sae.metadata
    site = str(about.get("hook_name_out") or about.get("hook_name") or "")
    layer = config.layer
    if layer is None:
        found = _LAYER.search(site)
        if found is None:
            raise InputError(
                f"site {shown(site)}: which layer it is in cannot be told; give neuronpedia.layer"
            )
        layer = int(found[1])
    model = config.model or _model_id(str(about.get("model_name", "")))
    kind = next((short for part, short in _KINDS.items() if part in site), "out")
    size = f"{sae.d_sae // 1024}k" if sae.d_sae >= 1024 else str(sae.d_sae)
    system = sae.config.architecture.replace("_", "-")
    name = config.set or f"saeforest-{system}-{kind}-{size}"
    _check_name("model", model, _MODEL_ID, "small letters, digits, hyphens and periods", MOST_MODEL)
    _check_name("set", name, _SET_NAME, "small letters, digits and single hyphens", MOST_NAME)
    if config.url and not re.match(r"https?://[^\s/]+", config.url):
        raise InputError(
            f"neuronpedia.url = {shown(config.url)}: expected an address that begins with https://"
        )
    if layer < 0:
        raise InputError(f"neuronpedia.layer = {layer}: expected 0 or more")
    return Names(
        model,
        name,
        layer,
        config.release or "saeforest",
        config.title or "Sparse autoencoders trained with saeforest",
        config.creator or "saeforest",
        config.url,
    )


def _model_id(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1].partition("@")[0].lower().replace("_", "-")
    return _KNOWN.get(last, last)


def _check_name(key: str, name: str, form: re.Pattern[str], allowed: str, most: int) -> None:
    if not form.fullmatch(name) or len(name) > most or name == "neurons":
        raise InputError(
            f"neuronpedia.{key} = {shown(name)}: expected at most {most} {allowed}, as Neuronpedia does; give another"
        )
