"""Activations for training: reading them from a language model, storing them, shuffling and batching."""

from .clock import Harvest
from .harvest import harvest_folder, harvest_memory
from .reader import ActivationBatch, ActivationReader
from .sources import Blocks, LiveActivations, StoredActivations, load_memory, open_store
from .stream import ActivationStream

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
    "load_memory",
    "open_store",
]
