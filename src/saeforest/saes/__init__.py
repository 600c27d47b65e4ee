"""The systems: one file each, and the files they are saved in."""

from .base import SAE, SAEConfig, Step, TrainingPlan
from .files import SYSTEMS, build, check_inference, load_sae, save_sae
from .tree import AllocationConfig, AuxConfig, TreeConfig, TreeSAE

__all__ = [
    "SAE",
    "SYSTEMS",
    "AllocationConfig",
    "AuxConfig",
    "SAEConfig",
    "Step",
    "TrainingPlan",
    "TreeConfig",
    "TreeSAE",
    "build",
    "check_inference",
    "load_sae",
    "save_sae",
]
