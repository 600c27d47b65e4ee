"""The systems by name. A new one is a file of its own and a line in each of the two tables here."""

from __future__ import annotations

from .base import SAE, SAEConfig
from .tree import TreeConfig, TreeSAE

#: What a run's `sae:` section can be; a union, told apart by `architecture`, as systems join.
SystemConfig = TreeConfig

SYSTEMS: dict[str, type[SAE]] = {"tree": TreeSAE}


def build(config: SAEConfig, d_in: int, *, seed: int = 0) -> SAE:
    """A fresh SAE of the system that the configuration belongs to."""
    return SYSTEMS[config.architecture](config, d_in, seed=seed)
