"""Language models: loading them, reading activations at a site, and the loss when activations are replaced."""

from saeforest.lm.identity import ModelIdentity, full_name, identify, same_model
from saeforest.lm.loading import load_lm, load_tokenizer
from saeforest.lm.model import LanguageModel
from saeforest.lm.sites import Site

__all__ = [
    "LanguageModel",
    "ModelIdentity",
    "Site",
    "full_name",
    "identify",
    "load_lm",
    "load_tokenizer",
    "same_model",
]
