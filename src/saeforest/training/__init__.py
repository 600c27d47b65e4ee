"""Training: one loop for any SAE, its checkpoints, its log, and whole runs."""

from ..stopping import Interrupted
from .loop import train
from .run import Run, run_training

__all__ = ["Interrupted", "Run", "run_training", "train"]
