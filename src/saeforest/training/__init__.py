"""Training: one loop for SAEs of all systems, checkpoints, logs, and whole runs."""

from ..stopping import Interrupted
from .loop import train
from .run import Run, run_training

__all__ = ["Interrupted", "Run", "run_training", "train"]
