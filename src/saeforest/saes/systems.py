"""The systems by name. To add one, write a file for it and add a line to each of the two tables here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from ..optim import OptimConfig
from .base import SAE, SAEConfig
from .batch_topk import BatchTopKConfig, BatchTopKSAE, BatchTopKTraining
from .expert_hsae import ExpertHSAE, ExpertHSAEConfig, ExpertHSAETraining
from .hsae import HSAE, HSAETraining
from .hsae_config import HSAEConfig
from .jumprelu import JumpReLUConfig, JumpReLUSAE, JumpReLUTraining
from .matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE, MatchingPursuitTraining
from .matryoshka import MatryoshkaConfig, MatryoshkaSAE, MatryoshkaTraining
from .topk import TopKConfig, TopKSAE, TopKTraining
from .training import RunLength, Setup, Training
from .tree import TreeSAE
from .tree_config import TreeConfig
from .tree_training import TreeTraining


def _architecture(section: Any) -> Any:
    """The architecture of a configuration, or of a section of a file, where the default is the tree."""
    if isinstance(section, dict):
        return section.get("architecture", "tree")
    return getattr(section, "architecture", None)


#: The configurations that the `sae:` section of a run may hold; `architecture` says which one it is.
SystemConfig = Annotated[
    Annotated[TreeConfig, Tag("tree")]
    | Annotated[HSAEConfig, Tag("hsae")]
    | Annotated[ExpertHSAEConfig, Tag("expert_hsae")]
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
    "expert_hsae": (ExpertHSAE, ExpertHSAETraining),
    "topk": (TopKSAE, TopKTraining),
    "batchtopk": (BatchTopKSAE, BatchTopKTraining),
    "matryoshka": (MatryoshkaSAE, MatryoshkaTraining),
    "jumprelu": (JumpReLUSAE, JumpReLUTraining),
    "matching_pursuit": (MatchingPursuitSAE, MatchingPursuitTraining),
}
#: The SAE class of each architecture.
SYSTEMS: dict[str, type[SAE]] = {name: sae for name, (sae, _) in _SYSTEMS.items()}


def build(config: SAEConfig, d_in: int, *, d_out: int | None = None, seed: int = 0) -> SAE:
    """Build a new, untrained SAE from a configuration.

    d_in: width of the activations.
    d_out: width of the target, for a transcoder.
    seed: random seed for the initial weights and forest.

    Raises InputError if a normalization is still `dataset_scale` rather than a number, or if `d_out` is given for a
    system that cannot be a transcoder.
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
    """Start training a new SAE: call `step` on every batch of the run, then `finish`.

    run: the length of the run, to which schedules are scaled.
    precision: data type in which features are selected; by default the one that `optim` names.
    Raises InputError as `build` does.
    """
    sae = build(config, d_in, d_out=d_out, seed=seed).to(device)
    return training_of(sae, Setup(run, optim or OptimConfig(batch_size=run.batch_size), precision, seed))


def training_of(sae: SAE, setup: Setup) -> Training:
    """Start training an existing SAE."""
    return _SYSTEMS[sae.config.architecture][1](sae, setup)
