"""The optimizer: Adam for SAEs, its settings and its schedule. It depends on matrices only, not on SAE classes."""

from .adam import Adam, flaw_of_moment, kept
from .config import OptimConfig, Precision, learning_rate, resolve_precision

__all__ = ["Adam", "OptimConfig", "Precision", "flaw_of_moment", "kept", "learning_rate", "resolve_precision"]
