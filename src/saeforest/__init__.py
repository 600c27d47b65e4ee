"""Hierarchical sparse autoencoders on the activations of language models."""

__version__ = "0.1.0"

from . import _environment as _environment  # before PyTorch
from .errors import InputError
from .interop import load
from .sparse_code import SparseCode
from .structure.forest import Forest

__all__ = ["Forest", "InputError", "SparseCode", "__version__", "load"]
