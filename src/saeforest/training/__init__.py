"""Training: one loop for any SAE, its checkpoints, its log, and whole runs."""

from .loop import Interrupted, train
from .run import Run, run_training

__all__ = ["Interrupted", "Run", "run_training", "train"]
