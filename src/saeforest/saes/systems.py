"""The systems by name. A new one is a file of its own and a line in each of the two tables here."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from .base import SAE, SAEConfig
from .batch_topk import BatchTopKConfig, BatchTopKSAE
from .hsae import HSAE, HSAEConfig
from .jumprelu import JumpReLUConfig, JumpReLUSAE
from .matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .matryoshka import MatryoshkaConfig, MatryoshkaSAE
from .topk import TopKConfig, TopKSAE
from .tree import TreeConfig, TreeSAE


def _architecture(section: Any) -> Any:
    """Of a section of a file, where it is the default if it isn't said, or of a configuration."""
    if isinstance(section, dict):
        return section.get("architecture", "tree")
    return getattr(section, "architecture", None)


#: What a run's `sae:` section can be, told apart by `architecture`.
SystemConfig = Annotated[
    Annotated[TreeConfig, Tag("tree")]
    | Annotated[HSAEConfig, Tag("hsae")]
    | Annotated[TopKConfig, Tag("topk")]
    | Annotated[BatchTopKConfig, Tag("batchtopk")]
    | Annotated[MatryoshkaConfig, Tag("matryoshka")]
    | Annotated[JumpReLUConfig, Tag("jumprelu")]
    | Annotated[MatchingPursuitConfig, Tag("matching_pursuit")],
    Discriminator(_architecture),
]

SYSTEMS: dict[str, type[SAE]] = {
    "tree": TreeSAE,
    "hsae": HSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "matching_pursuit": MatchingPursuitSAE,
}


def build(config: SAEConfig, d_in: int, *, seed: int = 0) -> SAE:
    """A fresh SAE of the system that the configuration belongs to."""
    return SYSTEMS[config.architecture](config, d_in, seed=seed)
