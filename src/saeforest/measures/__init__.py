"""What is measured: one file a measure, each from an SAE, a forest and data to one typed record."""

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
