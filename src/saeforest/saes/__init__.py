"""The systems: one file each, and the files they are saved in."""

from .base import SAE, SAEConfig, Step, TrainingPlan
from .files import check_inference, load_sae, save_sae
from .systems import SYSTEMS, SystemConfig, build
from .tree import AllocationConfig, AuxConfig, TreeConfig, TreeSAE

__all__ = [
    "SAE",
    "SYSTEMS",
    "AllocationConfig",
    "AuxConfig",
    "SAEConfig",
    "Step",
    "SystemConfig",
    "TrainingPlan",
    "TreeConfig",
    "TreeSAE",
    "build",
    "check_inference",
    "load_sae",
    "save_sae",
]
