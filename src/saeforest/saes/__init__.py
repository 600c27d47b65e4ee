"""The systems: one file each, and the files they are saved in."""

from .auxiliary import AuxConfig
from .base import SAE, SAEConfig, Step, TrainingPlan
from .batch_topk import BatchTopKConfig, BatchTopKSAE, ThresholdConfig
from .files import check_inference, load_sae, save_sae
from .hsae import HSAE, HierarchyConfig, HSAEConfig
from .jumprelu import JumpReLUConfig, JumpReLUSAE, SparsityConfig
from .matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .matryoshka import MatryoshkaConfig, MatryoshkaSAE
from .systems import SYSTEMS, SystemConfig, build
from .topk import TopKConfig, TopKSAE
from .tree import AllocationConfig, TreeAuxConfig, TreeConfig, TreeSAE

__all__ = [
    "HSAE",
    "SAE",
    "SYSTEMS",
    "AllocationConfig",
    "AuxConfig",
    "BatchTopKConfig",
    "BatchTopKSAE",
    "HSAEConfig",
    "HierarchyConfig",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "MatchingPursuitConfig",
    "MatchingPursuitSAE",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "SAEConfig",
    "SparsityConfig",
    "Step",
    "SystemConfig",
    "ThresholdConfig",
    "TopKConfig",
    "TopKSAE",
    "TrainingPlan",
    "TreeAuxConfig",
    "TreeConfig",
    "TreeSAE",
    "build",
    "check_inference",
    "load_sae",
    "save_sae",
]
