"""Taking measures: the registry, its settings, the pass over the text that feeds them, and the records of a run."""

from .evaluate import evaluate, evaluate_all
from .forests import infer
from .options import MeasureOptions
from .registry import MEASURES, SETS, measure_names
from .run import measure_run, measure_saes
from .table import table
from .task import Source, Task, make_task
from .windows import read_windows

__all__ = [
    "MEASURES",
    "SETS",
    "MeasureOptions",
    "Source",
    "Task",
    "evaluate",
    "evaluate_all",
    "infer",
    "make_task",
    "measure_names",
    "measure_run",
    "measure_saes",
    "read_windows",
    "table",
]
