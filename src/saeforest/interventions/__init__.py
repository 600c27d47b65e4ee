"""Changing what a language model computes: edits of an SAE's code, and steering with them."""

from .edits import CodeEdit, Edit, ablate, add, clamp, edited, scale, set_to
from .splice import Splice, put, splice
from .steer import At, Steered, Where, steer

__all__ = [
    "At",
    "CodeEdit",
    "Edit",
    "Splice",
    "Steered",
    "Where",
    "ablate",
    "add",
    "clamp",
    "edited",
    "put",
    "scale",
    "set_to",
    "splice",
    "steer",
]
