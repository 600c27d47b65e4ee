"""The optimizer: Adam for SAEs, its settings and its schedule. It depends on matrices only, not on SAE classes."""

from .adam import Adam, kept
from .config import OptimConfig, Precision, learning_rate, resolve_precision

__all__ = ["Adam", "OptimConfig", "Precision", "kept", "learning_rate", "resolve_precision"]
