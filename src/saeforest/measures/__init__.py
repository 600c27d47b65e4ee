"""Measures: one file each. A measure takes an SAE, a forest and data, and returns one typed record."""

from .measure import EvalBatch, Measure, WindowLosses
from .record import Record
from .spec import MeasureSpec, Streaming, Study
from .subject import Subject

__all__ = [
    "EvalBatch",
    "Measure",
    "MeasureSpec",
    "Record",
    "Streaming",
    "Study",
    "Subject",
    "WindowLosses",
]
