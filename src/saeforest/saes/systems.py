"""The systems by name. A new one is a file of its own and a line in each of the two tables here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from ..optim import OptimConfig
from .base import SAE, SAEConfig
from .batch_topk import BatchTopKConfig, BatchTopKSAE, BatchTopKTraining
from .hsae import HSAE, HSAEConfig, HSAETraining
from .jumprelu import JumpReLUConfig, JumpReLUSAE, JumpReLUTraining
from .matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE, MatchingPursuitTraining
from .matryoshka import MatryoshkaConfig, MatryoshkaSAE, MatryoshkaTraining
from .topk import TopKConfig, TopKSAE, TopKTraining
from .training import RunLength, Setup, Training
from .tree import TreeConfig, TreeSAE, TreeTraining


def _architecture(section: Any) -> Any:
    """The architecture of a section of a file, by default the tree, or that of a configuration."""
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

_SYSTEMS: dict[str, tuple[type[SAE], Callable[[Any, Setup], Training]]] = {
    "tree": (TreeSAE, TreeTraining),
    "hsae": (HSAE, HSAETraining),
    "topk": (TopKSAE, TopKTraining),
    "batchtopk": (BatchTopKSAE, BatchTopKTraining),
    "matryoshka": (MatryoshkaSAE, MatryoshkaTraining),
    "jumprelu": (JumpReLUSAE, JumpReLUTraining),
    "matching_pursuit": (MatchingPursuitSAE, MatchingPursuitTraining),
}
#: The SAE of each architecture.
SYSTEMS: dict[str, type[SAE]] = {name: sae for name, (sae, _) in _SYSTEMS.items()}


def build(config: SAEConfig, d_in: int, *, d_out: int | None = None, seed: int = 0) -> SAE:
    """A fresh SAE of the system that the configuration belongs to; with `d_out`, a transcoder.

    Raises InputError for a configuration that leaves a number open (dataset_scale), and for a transcoder of a system
    that reconstructs its input.
    """
    return SYSTEMS[config.architecture](config, d_in, d_out=d_out, seed=seed)


def start_training(
    config: SAEConfig,
    d_in: int,
    run: RunLength,
    *,
    d_out: int | None = None,
    seed: int = 0,
    optim: OptimConfig | None = None,
    precision: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Training:
    """The training of a fresh SAE: `step` it through the batches of a run, then `finish` it.

    precision: the type in which features are chosen, by default that of `optim`.
    """
    sae = build(config, d_in, d_out=d_out, seed=seed).to(device)
    return training_of(sae, Setup(run, optim or OptimConfig(batch_size=run.batch_size), precision, seed))


def training_of(sae: SAE, setup: Setup) -> Training:
    """The training of an SAE that exists."""
    return _SYSTEMS[sae.config.architecture][1](sae, setup)
