"""Sparse autoencoders: one file for each system, the parts they share, and how they are saved and loaded."""

from .allocator import AllocationConfig
from .auxiliary import AuxConfig
from .base import SAE, SAEConfig
from .batch_topk import BatchTopKConfig, BatchTopKSAE, ThresholdConfig
from .expert_hsae import ExpertHSAE, ExpertHSAEConfig
from .files import check_inference, load_sae, save_sae
from .hsae import HSAE
from .hsae_config import HSAEConfig, ParentsConfig
from .jumprelu import JumpReLUConfig, JumpReLUSAE
from .matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .matryoshka import MatryoshkaConfig, MatryoshkaSAE
from .normalizer import LayerNorm, Normalizer, Scale
from .parents_from_data import FromDataConfig
from .sparsity import SparsityConfig
from .systems import SYSTEMS, SystemConfig, build, start_training, training_of
from .topk import TopKConfig, TopKSAE
from .training import Event, RunLength, Setup, Step, Training, check_weights
from .tree import TreeSAE
from .tree_config import TreeAuxConfig, TreeConfig

__all__ = [
    "HSAE",
    "SAE",
    "SYSTEMS",
    "AllocationConfig",
    "AuxConfig",
    "BatchTopKConfig",
    "BatchTopKSAE",
    "Event",
    "ExpertHSAE",
    "ExpertHSAEConfig",
    "FromDataConfig",
    "HSAEConfig",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "LayerNorm",
    "MatchingPursuitConfig",
    "MatchingPursuitSAE",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "Normalizer",
    "ParentsConfig",
    "RunLength",
    "SAEConfig",
    "Scale",
    "Setup",
    "SparsityConfig",
    "Step",
    "SystemConfig",
    "ThresholdConfig",
    "TopKConfig",
    "TopKSAE",
    "Training",
    "TreeAuxConfig",
    "TreeConfig",
    "TreeSAE",
    "build",
    "check_inference",
    "check_weights",
    "load_sae",
    "save_sae",
    "start_training",
    "training_of",
]
