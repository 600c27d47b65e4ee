"""Measures: what an SAE and its forest are worth on held-out text, each as one typed record."""

from .evaluate import Source, Task, evaluate, evaluate_all, read_windows, subject_of
from .measure import EvalBatch, Measure, WindowLosses
from .options import MeasureOptions
from .record import Record
from .registry import MEASURES, SETS, measure_names
from .run import measure_run
from .subject import Seen, Subject
from .table import table

__all__ = [
    "MEASURES",
    "SETS",
    "EvalBatch",
    "Measure",
    "MeasureOptions",
    "Record",
    "Seen",
    "Source",
    "Subject",
    "Task",
    "WindowLosses",
    "evaluate",
    "evaluate_all",
    "measure_names",
    "measure_run",
    "read_windows",
    "subject_of",
    "table",
]
