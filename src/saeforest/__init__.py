"""Hierarchical sparse autoencoders on the activations of language models."""

__version__ = "0.1.0"

from . import _environment as _environment  # before PyTorch
from .code import SparseCode
from .errors import UserError
from .forest import Forest
from .interop import load

__all__ = ["Forest", "SparseCode", "UserError", "__version__", "load"]
