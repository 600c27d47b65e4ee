"""Measures: what an SAE and its forest are worth on held-out text, each as one typed record."""

from .evaluate import Source, evaluate, read_batch
from .measure import EvalBatch, Measure, WindowLosses
from .record import Record
from .registry import MEASURES, SETS, measure_names
from .run import measure_run
from .table import table

__all__ = [
    "MEASURES",
    "SETS",
    "EvalBatch",
    "Measure",
    "Record",
    "Source",
    "WindowLosses",
    "evaluate",
    "measure_names",
    "measure_run",
    "read_batch",
    "table",
]
