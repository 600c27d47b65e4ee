"""The command line."""

from .main import COMMANDS, main, run

__all__ = ["COMMANDS", "main", "run"]
