"""The settings of an export to Neuronpedia."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NeuronpediaConfig:
    """What an SAE is called on Neuronpedia."""

    model: str = ""
    """Id of the language model, such as gemma-2-2b. Default: its name on the Hub without the owner."""
    set: str = ""
    """Name of the source set: small letters, digits and hyphens. Default: system, site and number of features, such as
    saeforest-tree-res-24k."""
    layer: int | None = None
    """Number of the layer. Default: that of the site."""
    release: str = ""
    """Name of the release, which groups source sets. Default: saeforest."""
    title: str = ""
    """One line about the release. Default: Sparse autoencoders trained with saeforest."""
    creator: str = ""
    """Who made the SAE. Default: saeforest."""
    url: str = ""
    """Address of a paper or page about the release."""
    features: tuple[int, ...] = ()
    """Numbers of the features to export. Default: all that fire."""


@dataclass(frozen=True)
class UploadConfig:
    """How an export is uploaded."""

    api: str = "https://neuronpedia.org/api"
    """Address of the API."""
    new_model: int | None = None
    """Number of layers of the language model, to create it on Neuronpedia, unlisted. Default: it must be there."""
