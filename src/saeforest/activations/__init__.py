"""Activations on their way to the SAE: read from a language model, kept in memory or on disk, shuffled, batched."""

from .reader import ActivationBatch, ActivationReader
from .sources import Blocks, LiveActivations, StoredActivations, harvest_folder, harvest_memory, open_store
from .stream import ActivationStream

__all__ = [
    "ActivationBatch",
    "ActivationReader",
    "ActivationStream",
    "Blocks",
    "LiveActivations",
    "StoredActivations",
    "harvest_folder",
    "harvest_memory",
    "open_store",
]
