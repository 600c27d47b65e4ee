"""What is measured: one file a measure, each from an SAE, a forest and data to one typed record."""

from .measure import EvalBatch, Measure, WindowLosses
from .record import Record
from .subject import Seen, Subject

__all__ = ["EvalBatch", "Measure", "Record", "Seen", "Subject", "WindowLosses"]
