"""Activations on their way to the SAE: read from a language model, kept in memory or on disk, shuffled, batched."""

from .reader import ActivationBatch, ActivationReader
from .sources import Blocks, LiveActivations, StoredActivations, harvest_folder, harvest_memory, open_store
from .stream import ActivationStream
from .writer import Harvest

__all__ = [
    "ActivationBatch",
    "ActivationReader",
    "ActivationStream",
    "Blocks",
    "Harvest",
    "LiveActivations",
    "StoredActivations",
    "harvest_folder",
    "harvest_memory",
    "open_store",
]
